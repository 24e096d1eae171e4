// A run that an allocation fails in ends with word of it, harms nothing and keeps nothing. Planted bugs prove the search.
#include <array>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "../environment.hpp"
#include "scenarios.hpp"

namespace safering::test {
namespace {

using allocations::Threads;

void try_all(const std::vector<AllocationScenario>& scenarios, AllocationOptions options) {
    const char* picked = std::getenv("MEMORY_SCENARIO");
    for (const AllocationScenario& scenario : scenarios)
        for (const bool for_good : {false, true}) {
            if (picked != nullptr && !scenario.name.contains(picked))
                continue;
            SCOPED_TRACE(scenario.name);
            options.for_good = for_good;
            const AllocationTotals totals = try_allocations(scenario, options);
            fmt::print("{}: {} of {} allocations failed {}, {} runs succeeded\n", scenario.name,
                       totals.runs, totals.allocations, for_good ? "and all that followed" : "once",
                       totals.survived);
            for (const AllocationFinding& finding : totals.findings)
                ADD_FAILURE() << finding.demand << ": " << finding.text << ", seed "
                              << options.seed;
            EXPECT_GT(totals.runs, 0u);
        }
}

TEST(EveryAllocation, OfParsingAndPlanning) {
    try_all(pure_scenarios(), {});
}

class EveryAllocationOn : public testing::TestWithParam<BackendKind> {};

TEST_P(EveryAllocationOn, OfSavesAndLoads) {
    if (GetParam() == BackendKind::io_uring)
        if (const auto reactor = Reactor::create({.backend = BackendChoice::io_uring}); !reactor)
            GTEST_SKIP() << reactor.error().message();
    try_all(io_scenarios(GetParam()), {.threads = Threads::all,
                                       .runs = from_environment("MEMORY_RUNS", 40),
                                       .seed = from_environment("MEMORY_SEED", 1)});
}

INSTANTIATE_TEST_SUITE_P(Backends, EveryAllocationOn,
                         testing::Values(BackendKind::simulated, BackendKind::threads,
                                         BackendKind::io_uring),
                         [](const auto& kind) { return std::string(name(kind.param)); });

// What needs memory.
std::string some_text() {
    return std::string(100, 'x');
}

std::string first_demand(const AllocationScenario& scenario) {
    const AllocationTotals totals = try_allocations(scenario);
    return totals.findings.empty() ? "" : totals.findings.front().demand;
}

TEST(PlantedBugs, WantOfMemoryIsSwallowed) {
    std::string made;
    EXPECT_EQ(first_demand({.name = "swallowed",
                            .run = [&] -> Result<void> {
                                made.clear();
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
    std::array<std::string*, 64> all{}; // for a leak sanitizer
    std::size_t count = 0;
    EXPECT_EQ(first_demand({.name = "kept",
                            .run = [&] -> Result<void> {
                                std::string*& kept = all.at(count);
                                kept = new std::string(some_text());
                                ++count;
                                const std::string more = *kept + some_text();
                                delete std::exchange(kept, nullptr);
                                --count;
                                return more.empty() ? fail(Errc::plan_hole, "run") : Result<void>();
                            }}),
              "leak");
    for (std::string* kept : all)
        delete kept;
}

TEST(PlantedBugsDeathTest, AnExceptionMeetsADestructor) {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    const auto dies = []() noexcept { return some_text(); };
    EXPECT_DEATH(first_demand({.name = "terminates",
                               .run = [&] -> Result<void> {
                                   return dies().empty() ? fail(Errc::plan_hole, "run")
                                                         : Result<void>();
                               }}),
                 "died");
}

} // namespace
} // namespace safering::test
