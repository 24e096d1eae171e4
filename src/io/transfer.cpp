#include "io/transfer.hpp"

#include <algorithm>

#include <safering/byte_range.hpp>

namespace safering {

namespace {

// What Linux moves at most in one read or write (MAX_RW_COUNT).
constexpr std::uint64_t longest_transfer = 0x7ffff000;
// Pauses double from 1 ms, so all together are a quarter of a second: long enough for a device
// queue to drain, short enough to notice a file system that will never answer.
constexpr unsigned most_idle = 8;

bool is_transfer(Opcode op) {
    return op == Opcode::read || op == Opcode::write;
}

// Repeating a name operation that had in truth succeeded would report EEXIST or ENOENT, and a
// repeated fsync may report success for data that the first one lost.
bool may_repeat(const Request& request) {
    switch (request.op) {
    case Opcode::read:
    case Opcode::write:
    case Opcode::allocate:
    case Opcode::truncate:
    case Opcode::stat:
    case Opcode::list: return true;
    case Opcode::open: return request.mode != OpenMode::create;
    default: return false;
    }
}

void aim(Operation& operation, std::uint64_t position) {
    const Request& request = operation.request;
    operation.data = request.data == nullptr ? nullptr : request.data + position;
    operation.offset = request.offset + position;
    operation.length = std::min(request.length - position, longest_transfer);
    operation.completion = {};
}

NextStep finish(Operation& operation) {
    operation.completion.retries = operation.retries;
    return NextStep::finish;
}

NextStep finish(Operation& operation, std::error_code error) {
    operation.completion.error = error;
    operation.completion.result = operation.moved;
    return finish(operation);
}

NextStep next_transfer_step(Operation& operation, const std::function<std::uint64_t()>& alignment) {
    const Request& request = operation.request;
    const std::uint64_t arrived = operation.completion.result;
    const bool whole = arrived == operation.length;
    const std::uint64_t end = operation.offset - request.offset + arrived;
    const bool progressed = end > operation.moved;
    operation.moved = std::max(operation.moved, end);
    if (operation.moved == request.length)
        return finish(operation, {});
    if (request.op == Opcode::read && !whole) {
        const std::uint64_t minimum = request.minimum == 0 ? request.length : request.minimum;
        if (operation.moved >= minimum)
            return finish(operation, {});
        if (!progressed)
            return finish(operation, Errc::io_unexpected_end);
    }
    operation.idle = progressed ? 0 : operation.idle + 1;
    if (operation.idle > most_idle)
        return finish(operation, Errc::io_no_progress);

    if (!whole)
        ++operation.retries;
    // A resumed direct transfer must start on a block again: the part of a block that did move is
    // moved a second time.
    const std::uint64_t at = round_down(request.offset + operation.moved, alignment());
    aim(operation, at > request.offset ? at - request.offset : 0);
    return operation.idle == 0 ? NextStep::again : NextStep::later;
}

} // namespace

void begin_transfer(Operation& operation) {
    if (is_transfer(operation.request.op)) {
        aim(operation, 0);
    } else {
        operation.data = operation.request.data;
        operation.offset = operation.request.offset;
        operation.length = operation.request.length;
    }
}

NextStep next_step(Operation& operation, const std::function<std::uint64_t()>& alignment) {
    const std::error_code error = operation.completion.error;
    const bool transfer = is_transfer(operation.request.op);
    if (!error)
        return transfer ? next_transfer_step(operation, alignment) : finish(operation);
    const bool interrupted = error == std::errc::interrupted;
    const bool busy = error == std::errc::resource_unavailable_try_again;
    if ((interrupted || busy) && may_repeat(operation.request) && operation.idle < most_idle) {
        ++operation.idle;
        ++operation.retries;
        operation.completion = {};
        return busy ? NextStep::later : NextStep::again;
    }
    if (transfer)
        operation.completion.result = operation.moved;
    return finish(operation);
}

std::chrono::milliseconds pause(const Operation& operation) {
    return std::chrono::milliseconds{
        1 << std::min(operation.idle == 0 ? 0 : operation.idle - 1, most_idle - 1)};
}

} // namespace safering
