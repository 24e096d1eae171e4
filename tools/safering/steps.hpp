// How `list`, `prune` and `recover` tell of checkpoints of a run and of leftovers.
#pragma once

#include <span>
#include <string>

#include <safering/retention.hpp>

#include "command.hpp"

namespace safering::tools {

Json to_json(const StepCheckpoint& checkpoint);
Json to_json(const Leftover& leftover);
/// What it is, and what may be done about it.
std::string words(const Leftover& leftover);
/// What a call ends with that was to remove something; says on stderr how much it could not.
ExitCode end_removal(std::span<const Error> failures);
/// "2026-01-31 23:59:59", local time.
std::string format_time(std::uint64_t ms_since_1970);

} // namespace safering::tools
