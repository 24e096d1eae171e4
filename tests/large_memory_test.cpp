#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include <boost/container/flat_map.hpp>
#include <gtest/gtest.h>

#include "large_memory.hpp"

namespace safering {
namespace {

constexpr std::size_t many = std::size_t{1} << 20; // more than a huge page in each of these

TEST(LargeMemory, ReservesAndKeepsWhatIsThere) {
    std::vector<std::uint64_t> numbers{7};
    reserve_large(numbers, many);
    EXPECT_GE(numbers.capacity(), many);
    EXPECT_EQ(numbers, std::vector<std::uint64_t>{7});
    const auto* before = numbers.data();
    numbers.resize(many, 5);
    EXPECT_EQ(numbers.data(), before);
    EXPECT_EQ(numbers.back(), 5u);

    std::string text = "a";
    reserve_large(text, 8 * many);
    EXPECT_GE(text.capacity(), 8 * many);
    EXPECT_EQ(text, "a");

    boost::container::flat_map<std::uint64_t, std::uint64_t> map;
    reserve_large(map, many);
    EXPECT_GE(map.capacity(), many);
    map.emplace_hint(map.end(), 1, 2);
    EXPECT_EQ(map.at(1), 2u);
}

TEST(LargeMemory, ReservesNothingForNothing) {
    std::vector<int> none;
    reserve_large(none, 0);
    EXPECT_EQ(none.capacity(), 0u);
    reserve_large(none, 3);
    reserve_large(none, 2);
    EXPECT_GE(none.capacity(), 3u);
}

TEST(LargeMemory, AdviceLeavesMemoryAsItIs) {
    std::vector<unsigned char> bytes(8 << 20, 0xA5);
    advise_huge(bytes.data() + 1, bytes.size() - 1);
    advise_huge(bytes.data(), 1);
    advise_huge(nullptr, 0);
    EXPECT_EQ(std::count(bytes.begin(), bytes.end(), 0xA5), 8 << 20);
}

} // namespace
} // namespace safering
