#include <algorithm>
#include <numeric>
#include <random>
#include <string>

#include <gtest/gtest.h>

#include "name_order.hpp"

namespace safering {
namespace {

void expect_in_order(const std::vector<std::string>& names) {
    const std::vector<std::string_view> views(names.begin(), names.end());
    std::vector<std::uint32_t> expected(names.size());
    std::iota(expected.begin(), expected.end(), 0u);
    std::ranges::stable_sort(expected, {}, [&](std::uint32_t place) { return views[place]; });
    EXPECT_EQ(name_order(views), expected);
}

TEST(NameOrder, OfNoneAndFew) {
    expect_in_order({});
    expect_in_order({"a"});
    expect_in_order({"b", "a", "", "b", "a"});
}

TEST(NameOrder, OfNamesThatShareBeginningsAndEndAnywhere) {
    const unsigned seed = std::random_device{}();
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    for (int round = 0; round < 50; ++round) {
        const std::string shared(random() % 40, 'x');
        std::vector<std::string> names;
        for (int n = 0; n < 400; ++n) {
            std::string name = shared.substr(0, random() % 8 == 0 ? random() % 40 : 40);
            // Few letters, so that names repeat; a NUL and a byte above 127 among them.
            for (unsigned length = random() % 12; length > 0; --length)
                name += "\0ab\xff"[random() % 4];
            names.push_back(std::move(name));
        }
        expect_in_order(names);
    }
}

} // namespace
} // namespace safering
