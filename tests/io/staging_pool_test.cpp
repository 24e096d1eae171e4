#include "io/staging_pool.hpp"

#include <cstring>
#include <map>

#include <gtest/gtest.h>

namespace safering::io {
namespace {

constexpr std::size_t mib = std::size_t{1} << 20;

TEST(StagingPool, LendsTheSameMemoryAgain) {
    StagingPool pool;
    auto first = pool.take(5 * mib).value();
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(first.get()) % (2 * mib), 0u);
    std::memset(first.get(), 1, 5 * mib);
    const std::byte* where = first.get();
    auto second = pool.take(5 * mib).value();
    EXPECT_NE(second.get(), where);
    first.reset();
    EXPECT_EQ(pool.take(4 * mib).value().get(), where);
    EXPECT_EQ(pool.bytes(), 12 * mib);
    second.reset();
    pool.release();
    EXPECT_EQ(pool.bytes(), 0u);
    EXPECT_EQ(pool.take(0).value(), nullptr);
}

TEST(StagingPool, KeepsNoMoreThanWasInUseTogether) {
    StagingPool pool;
    for (const std::size_t bytes : {2 * mib, 70 * mib, 300 * mib})
        pool.take(bytes).value().reset();
    EXPECT_EQ(pool.bytes(), 300 * mib);
    // Too large to be lent for so little, and larger than what comes back.
    pool.take(10 * mib).value().reset();
    EXPECT_EQ(pool.bytes(), 300 * mib);
}

TEST(StagingPool, KnowsItsMemory) {
    StagingPool pool;
    const auto memory = pool.take(2 * mib).value();
    EXPECT_TRUE(pool.holds(memory.get(), 2 * mib));
    EXPECT_TRUE(pool.holds(memory.get() + 100, 2 * mib - 100));
    EXPECT_FALSE(pool.holds(memory.get() + 100, 2 * mib));
    EXPECT_FALSE(pool.holds(memory.get(), ~std::size_t{0}));
    const std::byte other{};
    EXPECT_FALSE(pool.holds(&other, 1));
}

TEST(StagingPool, LendsWhatWasReserved) {
    StagingPool pool;
    ASSERT_TRUE(pool.reserve(9 * mib));
    ASSERT_TRUE(pool.reserve(9 * mib)); // is there already
    EXPECT_EQ(pool.bytes(), 10 * mib);
    const auto memory = pool.take(9 * mib).value();
    EXPECT_EQ(pool.bytes(), 10 * mib);
    ASSERT_TRUE(pool.reserve(9 * mib)); // that one is in use
    EXPECT_EQ(pool.bytes(), 20 * mib);
    const auto refused = pool.take(std::size_t{1} << 60);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, std::errc::not_enough_memory);
}

TEST(StagingPool, TellsOfEachSegmentOnce) {
    StagingPool pool;
    std::map<std::byte*, int> there;
    pool.set_hooks({.made = [&](std::byte* memory, std::size_t) { ++there[memory]; },
                    .going = [&](std::byte* memory, std::size_t) { --there[memory]; }});
    for (int i = 0; i < 3; ++i)
        pool.take(2 * mib).value().reset();
    ASSERT_EQ(there.size(), 1u);
    EXPECT_EQ(there.begin()->second, 1);
    pool.release();
    EXPECT_EQ(there.begin()->second, 0);
}

} // namespace
} // namespace safering::io
