// Each planted bug is found, by the check that should find it, and the README's table names them all.
#include <fstream>
#include <iterator>

#include <gtest/gtest.h>

#include <fmt/format.h>

#include "planted_bugs.hpp"
#include "scenarios.hpp"

namespace safering::test {
namespace {

TEST(PlantedBugs, AreAllFound) {
    std::ifstream file(CRASH_README);
    const std::string readme{std::istreambuf_iterator<char>(file), {}};
    const auto bugs = planted_bugs();
    std::size_t found = 0;
    for (const PlantedBug& bug : bugs) {
        SCOPED_TRACE(bug.name);
        const Scenario scenario = bug.scenario();
        const Enumeration counts =
            enumerate(scenario, {.exhaustive_bits = 16, .samples = 20'000, .deep_every = 0});
        found += counts.violation.empty() ? 0 : 1;
        EXPECT_NE(counts.violation, "") << "not found in " << counts.states << " states";
        EXPECT_EQ(counts.broken, bug.found_by) << counts.violation;
        const std::string row = fmt::format("| {} | {} | {} | ", bug.name, bug.how, bug.found_by);
        fmt::print("{}{} |\n", row, counts.states);
        EXPECT_TRUE(readme.contains(row)) << "the README's table lacks this row";
    }
    fmt::print("{} of {} planted bugs found\n", found, bugs.size());
    EXPECT_EQ(found, bugs.size());
    EXPECT_GE(bugs.size(), 15u);
}

// The same scenarios without a bug: what is found is the bug's.
TEST(PlantedBugs, AreNotFoundWhereThereIsNone) {
    for (const Scenario& scenario : {first_save("first save", {1, 0}, {}),
                                     replace("replace", two_files(tiny_model(0)), {1, 0}, {})})
        EXPECT_EQ(enumerate(scenario, {.exhaustive_bits = 16}).violation, "");
}

} // namespace
} // namespace safering::test
