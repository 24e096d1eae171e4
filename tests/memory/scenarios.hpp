// Runs of the library whose every allocation is to fail.
#pragma once

#include <vector>

#include <safering/reactor.hpp>

#include "try_allocations.hpp"

namespace safering::test {

/// Those without files.
std::vector<AllocationScenario> pure_scenarios();
/// Saves and loads.
std::vector<AllocationScenario> io_scenarios(BackendKind kind);

} // namespace safering::test
