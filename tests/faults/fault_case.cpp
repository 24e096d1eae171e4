#include "fault_case.hpp"

#include <array>
#include <cerrno>
#include <cstring>
#include <map>

#include <fmt/format.h>

namespace safering::test {

namespace {

constexpr std::array errors{EIO, ENOSPC, EDQUOT, EINTR, EAGAIN, ECANCELED, EROFS};

bool is_transfer(Opcode op) {
    return op == Opcode::read || op == Opcode::write;
}

// What may be done twice without harm; a name operation or an fsync may not.
bool is_repeated(const Traced& operation) {
    switch (operation.op) {
    case Opcode::read:
    case Opcode::write:
    case Opcode::allocate:
    case Opcode::truncate:
    case Opcode::stat:
    case Opcode::list: return true;
    default: return false;
    }
}

std::string_view text(Shortening shortening) {
    switch (shortening) {
    case Shortening::none: return "moves nothing";
    case Shortening::one: return "moves 1";
    case Shortening::half: return "moves half";
    case Shortening::all_but_one: return "moves all but one";
    }
    return "";
}

FaultCase make(const Traced& operation, std::string_view how, bool for_ever, Fault fault) {
    fault.op = operation.op;
    fault.after = operation.nth;
    fault.times = for_ever ? Fault::for_ever : 1;
    return {std::move(fault), false,
            fmt::format("{} {} of {}: {}, {}", name(operation.op), operation.nth, operation.path,
                        how, for_ever ? "for ever" : "once")};
}

} // namespace

Tracer::Tracer(SimulatedDisk& disk) {
    disk.intercept([this, seen = std::map<Opcode, std::uint64_t>()](
                       Operation& operation) mutable -> std::optional<Completion> {
        const Request& request = operation.request;
        operations_.push_back({request.op, request.path, seen[request.op]++});
        return std::nullopt;
    });
}

std::vector<FaultCase> fault_cases(const std::vector<Traced>& operations, bool patient) {
    std::vector<FaultCase> cases;
    for (const Traced& operation : operations) {
        const bool pausing = patient && operation.nth == 0;
        for (const int error : errors)
            for (const bool for_ever : {false, true}) {
                if (error == EAGAIN && for_ever && !pausing)
                    continue;
                cases.push_back(make(operation, std::strerror(error), for_ever, {.error = error}));
                cases.back().transient =
                    !for_ever && (error == EINTR || error == EAGAIN) && is_repeated(operation);
            }
        if (!is_transfer(operation.op))
            continue;
        for (const Shortening shortening :
             {Shortening::one, Shortening::half, Shortening::all_but_one})
            for (const bool for_ever : {false, true}) {
                cases.push_back(
                    make(operation, text(shortening), for_ever, {.shortening = shortening}));
                cases.back().transient = true;
            }
        // A write that moves nothing is tried again; a read is at the end of its file.
        cases.push_back(make(operation, text(Shortening::none), false, {.error = 0}));
        cases.back().transient = operation.op == Opcode::write;
        if (pausing)
            cases.push_back(make(operation, text(Shortening::none), true, {.error = 0}));
    }
    return cases;
}

} // namespace safering::test
