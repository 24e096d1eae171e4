// Each planted bug is found by the demand that should find it, and the README's table names them all.
#include <fstream>
#include <iterator>

#include <gtest/gtest.h>

#include <fmt/format.h>

#include "planted_faults.hpp"

namespace safering::test {
namespace {

TEST(PlantedFaults, AreAllFound) {
    std::ifstream file(FAULTS_README);
    const std::string readme{std::istreambuf_iterator<char>(file), {}};
    auto bugs = planted_faults();
    for (PlantedFault& bug : bugs) {
        SCOPED_TRACE(bug.name);
        bug.options.stop_at_first = true;
        const FaultTotals totals = try_faults(bug.scenario, bug.options);
        ASSERT_FALSE(totals.findings.empty()) << "not found in " << totals.cases << " cases";
        EXPECT_EQ(totals.findings.front().demand, bug.found_by) << totals.findings.front().text;
        const std::string row = fmt::format("| {} | {} | {} | ", bug.name, bug.how, bug.found_by);
        fmt::print("{}{} |\n", row, totals.cases);
        EXPECT_TRUE(readme.contains(row)) << "the README's table lacks this row";
    }
    EXPECT_GE(bugs.size(), 10u);
}

} // namespace
} // namespace safering::test
