#include "steps.hpp"

#include <ctime>

#include <fmt/format.h>

namespace safering::tools {

namespace {

std::string_view name(Leftover::Kind kind) {
    switch (kind) {
    case Leftover::Kind::attempt: return "attempt";
    case Leftover::Kind::switching: return "switching";
    case Leftover::Kind::removal: return "removal";
    }
    return "unknown";
}

} // namespace

Json to_json(const StepCheckpoint& checkpoint) {
    return {
        {"name", checkpoint.name},         {"prefix", checkpoint.prefix},
        {"step", checkpoint.step},         {"path", checkpoint.path},
        {"state", name(checkpoint.state)}, {"attempt", checkpoint.attempt},
        {"saved_ms", checkpoint.saved_ms}, {"files", checkpoint.files},
        {"bytes", checkpoint.bytes},       {"reason", checkpoint.reason},
        {"others", checkpoint.others},
    };
}

Json to_json(const Leftover& leftover) {
    return {
        {"kind", name(leftover.kind)}, {"name", leftover.name},         {"path", leftover.path},
        {"target", leftover.target},   {"begun_ms", leftover.begun_ms}, {"stale", leftover.stale},
    };
}

std::string words(const Leftover& leftover) {
    const std::string target = escaped(leftover.target);
    const std::string time = format_time(leftover.begun_ms);
    switch (leftover.kind) {
    case Leftover::Kind::attempt:
        return leftover.stale
                   ? fmt::format("attempt of {} at {}, overtaken by a later save; safering "
                                 "recover removes it",
                                 target, time)
                   : fmt::format("attempt of {} at {}, in progress or cut off", target, time);
    case Leftover::Kind::switching:
        return fmt::format("of the committed save of {} at {}; safering recover moves its files in",
                           target, time);
    case Leftover::Kind::removal:
        return fmt::format("removal of {}, saved at {}, cut off; safering prune or recover "
                           "finishes it",
                           target, time);
    }
    return {};
}

std::string format_time(std::uint64_t ms_since_1970) {
    const auto seconds = static_cast<std::time_t>(ms_since_1970 / 1000);
    std::tm local{};
    char text[32] = "?";
    if (localtime_r(&seconds, &local) != nullptr)
        std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &local);
    return text;
}

ExitCode end_removal(std::span<const Error> failures) {
    if (failures.empty())
        return exit_good;
    fmt::print(stderr, "safering: not all could be removed, failures: {}\n", failures.size());
    return exit_failure;
}

} // namespace safering::tools
