// Lets every allocation of a run fail, one after the other until none is left, and demands each time:
//
//   1. the run ends ("hang"), and the process goes on ("died");
//   2. it succeeds with what it should have done, or says that memory was wanting ("wrong error");
//   3. what it worked on is as before, or as it should become ("harmed");
//
// and at the end, when the run has succeeded once more without a failure:
//
//   4. no memory and no descriptor is kept ("leak");
//   5. nothing lies about ("left over").
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <safering/error.hpp>

#include "allocations.hpp"

namespace safering::test {

struct AllocationScenario {
    std::string name;
    /// Makes what the run needs; called again where a run has changed it.
    std::function<void()> set_up = [] {};
    /// The run; may throw std::bad_alloc and Exception.
    std::function<Result<void>()> run;
    /// What is wrong with what the run worked on; empty where nothing is.
    std::function<std::string(bool succeeded)> harm = [](bool) { return std::string(); };
    /// What lies about after a success.
    std::function<std::string()> left_over = [] { return std::string(); };
    /// Gives back what set_up() made.
    std::function<void()> tear_down = [] {};
};

struct AllocationFinding {
    std::string demand;
    std::string text;
};

struct AllocationTotals {
    /// Of a run without a failure.
    std::uint64_t allocations = 0;
    /// Runs with an allocation that failed, and those of them that succeeded all the same.
    std::uint64_t runs = 0;
    std::uint64_t survived = 0;
    std::vector<AllocationFinding> findings;
};

struct AllocationOptions {
    allocations::Threads threads = allocations::Threads::caller;
    /// Once, or for the rest of the run.
    bool for_good = false;
    /// Only so many of the allocations, chosen by the seed; 0: all.
    std::uint64_t runs = 0;
    std::uint64_t seed = 0;
    /// How long a run may take; longer ends the process, saying so.
    unsigned hang_seconds = 120;
};

AllocationTotals try_allocations(const AllocationScenario& scenario,
                                 const AllocationOptions& options = {});

} // namespace safering::test
