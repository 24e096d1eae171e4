// Every operation of every run fails once and for ever. FAULT_SCENARIO=text picks runs by name.
#include <cstdlib>

#include <gtest/gtest.h>

#include <fmt/format.h>

#include "try_faults.hpp"

namespace safering::test {
namespace {

TEST(Faults, EveryOperationFailsInEveryWay) {
    const char* wanted = std::getenv("FAULT_SCENARIO");
    std::uint64_t cases = 0;
    for (const FaultScenario& scenario : fault_scenarios()) {
        if (wanted != nullptr && !scenario.name.contains(wanted))
            continue;
        const FaultTotals totals = try_faults(scenario);
        fmt::print(
            "{:<34} {:>4} operations, {:>5} faults: {:>5} failed, {:>5} survived, {} findings\n",
            scenario.name, totals.operations, totals.cases, totals.failed, totals.survived,
            totals.findings.size());
        std::fflush(stdout);
        for (std::size_t i = 0; i < std::min<std::size_t>(totals.findings.size(), 20); ++i)
            ADD_FAILURE() << scenario.name << ": " << totals.findings[i].demand << ": "
                          << totals.findings[i].text;
        cases += totals.cases;
    }
    fmt::print("{} faults\n", cases);
    EXPECT_TRUE(wanted != nullptr || cases > 5000);
}

} // namespace
} // namespace safering::test
