// A run that an allocation fails in ends with word of it, harms nothing and keeps nothing. Planted bugs prove the search.
#include <memory>
#include <string>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "scenarios.hpp"

namespace safering::test {
namespace {

using allocations::Threads;

TEST(EveryAllocation, OfParsingAndPlanning) {
    for (const AllocationScenario& scenario : pure_scenarios()) {
        SCOPED_TRACE(scenario.name);
        const AllocationTotals totals = try_allocations(scenario, Threads::caller);
        fmt::print("{}: {} allocations failed\n", scenario.name, totals.runs);
        for (const AllocationFinding& finding : totals.findings)
            ADD_FAILURE() << finding.demand << ": " << finding.text;
        EXPECT_GT(totals.runs, 0u);
    }
}

// What needs memory.
std::string some_text() {
    return std::string(100, 'x');
}

std::string first_demand(const AllocationScenario& scenario) {
    const AllocationTotals totals = try_allocations(scenario, Threads::caller);
    return totals.findings.empty() ? "" : totals.findings.front().demand;
}

TEST(PlantedBugs, WantOfMemoryIsSwallowed) {
    std::string made;
    EXPECT_EQ(first_demand({.name = "swallowed",
                            .set_up = [&] { made.clear(); },
                            .run = [&] -> Result<void> {
                                try {
                                    made = some_text();
                                } catch (const std::bad_alloc&) {
                                    return {};
                                }
                                return {};
                            },
                            .harm =
                                [&](bool succeeded) {
                                    return std::string(succeeded && made.empty() ? "nothing" : "");
                                },
                            .tear_down = [&] { made = std::string(); }}),
              "harmed");
}

TEST(PlantedBugs, AnotherErrorIsReported) {
    EXPECT_EQ(first_demand({.name = "another error",
                            .run = [] -> Result<void> {
                                try {
                                    (void)some_text();
                                } catch (const std::bad_alloc&) {
                                    return fail(std::make_error_code(std::errc::io_error), "run");
                                }
                                return {};
                            }}),
              "wrong error");
}

TEST(PlantedBugs, MemoryIsKept) {
    EXPECT_EQ(first_demand({.name = "kept",
                            .run = [] -> Result<void> {
                                auto* kept = new std::string(some_text());
                                const std::string more = *kept + some_text();
                                delete kept;
                                return more.empty() ? fail(Errc::plan_hole, "run") : Result<void>();
                            }}),
              "leak");
}

TEST(PlantedBugsDeathTest, AnExceptionMeetsADestructor) {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    const auto dies = []() noexcept { return some_text(); };
    EXPECT_DEATH(first_demand({.name = "terminates",
                               .run = [&] -> Result<void> {
                                   return dies().empty() ? fail(Errc::plan_hole, "run")
                                                         : Result<void>();
                               }}),
                 "bad_alloc");
}

} // namespace
} // namespace safering::test
