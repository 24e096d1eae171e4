// Runs of the library whose every allocation is to fail.
#pragma once

#include <vector>

#include "try_allocations.hpp"

namespace safering::test {

/// Those without files.
std::vector<AllocationScenario> pure_scenarios();

} // namespace safering::test
