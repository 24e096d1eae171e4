// The promise against every state that a power cut may leave: the old checkpoint or the new one, whole, and the new
// one once success was reported. CRASH_SCENARIOS=n adds n random scenarios, CRASH_SEED=s begins them elsewhere.
#include <cstdio>

#include <fmt/format.h>

#include "../environment.hpp"
#include "scenarios.hpp"

namespace safering::test {
namespace {

class Totals {
  public:
    void add(const std::string& name, const Enumeration& counts) {
        fmt::print("{:<44} {:>9} states, {:>8} distinct, {:>6} runs ({:>4} deep), {:>3} points "
                   "({:>3} sampled); nothing {}, old {}, new {}\n",
                   name, counts.states, counts.distinct, counts.runs, counts.deep_runs,
                   counts.points, counts.sampled_points, counts.seen[0], counts.seen[1],
                   counts.seen[2]);
        std::fflush(stdout);
        states += counts.states;
        distinct += counts.distinct;
        runs += counts.runs;
    }
    std::uint64_t states = 0;
    std::uint64_t distinct = 0;
    std::uint64_t runs = 0;
};

// Both ends of the recording were reached, or the scenario proves nothing.
void expect_both_ends(const Scenario& scenario, const Enumeration& counts) {
    EXPECT_GT(counts.seen[static_cast<int>(Found::fresh)], 0u) << scenario.name;
    if (scenario.reported_at == 0)
        return;
    const Found before = scenario.expectations.old ? Found::old : Found::nothing;
    EXPECT_GT(counts.seen[static_cast<int>(before)], 0u) << scenario.name;
}

TEST(CrashStates, OldOrNewWholeAndNewOnceReported) {
    Totals totals;
    for (const Scenario& scenario : small_scenarios()) {
        const Enumeration counts = enumerate(scenario, {.exhaustive_bits = 16, .samples = 20'000});
        totals.add(scenario.name, counts);
        EXPECT_EQ(counts.violation, "");
        expect_both_ends(scenario, counts);
    }
    const std::uint64_t first = from_environment("CRASH_SEED", 1);
    const std::uint64_t scenarios = from_environment("CRASH_SCENARIOS", 20);
    for (std::uint64_t seed = first; seed < first + scenarios; ++seed) {
        const Scenario scenario = random_scenario(seed);
        const Enumeration counts = enumerate(scenario, {.samples = 2000, .seed = seed});
        totals.add(scenario.name, counts);
        EXPECT_EQ(counts.violation, "") << "CRASH_SEED=" << seed << " CRASH_SCENARIOS=1";
        expect_both_ends(scenario, counts);
    }
    fmt::print("{} states enumerated, {} of them different disks, all checked; {} runs of the "
               "reader, one for all that it cannot tell apart; random scenarios from seed {}\n",
               totals.states, totals.distinct, totals.runs, first);
    EXPECT_GE(totals.states, 1'000'000u);
}

} // namespace
} // namespace safering::test
