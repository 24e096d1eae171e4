// Everything here runs on a clock of the test's own.
#include "checkpoint/throttle.hpp"

#include <gtest/gtest.h>

namespace safering::checkpoint {
namespace {

using namespace std::chrono_literals;
using Nanoseconds = std::chrono::nanoseconds;

// Writes `cells` cells that take the thread `each` and no time otherwise; how long that lasts.
Nanoseconds run(Throttle& throttle, int cells, std::uint64_t bytes, Nanoseconds each) {
    Nanoseconds now = 1000s, ran = 5s;
    const Nanoseconds begin = now;
    for (int i = 0; i < cells; ++i) {
        now += throttle.wait(now, ran);
        EXPECT_EQ(throttle.wait(now, ran), 0ns); // time enough has gone by
        throttle.add_bytes(bytes);
        now += each;
        ran += each;
    }
    return now + throttle.wait(now, ran) - begin;
}

TEST(Throttle, KeepsToTheRate) {
    Throttle throttle({.bytes_per_second = 100 << 20});
    EXPECT_EQ(run(throttle, 50, 4 << 20, 0ns), 2s);
}

TEST(Throttle, KeepsToTheShareOfACore) {
    Throttle throttle({.processor_share = 0.1});
    EXPECT_EQ(run(throttle, 100, 4 << 20, 1ms), 1s);
}

TEST(Throttle, TheTighterLimitCounts) {
    Throttle throttle({.bytes_per_second = 400 << 20, .processor_share = 0.1});
    EXPECT_EQ(run(throttle, 100, 4 << 20, 2ms), 2s);
}

TEST(Throttle, WithoutLimitsNothingWaits) {
    Throttle throttle({});
    EXPECT_FALSE(throttle.limited());
    EXPECT_EQ(run(throttle, 100, 4 << 20, 1ms), 100ms);
}

TEST(Throttle, LiftedItWaitsNoMore) {
    Throttle throttle({.bytes_per_second = 1});
    EXPECT_EQ(throttle.wait(1s, 0s), 0ns);
    throttle.add_bytes(100);
    EXPECT_EQ(throttle.wait(1s, 0s), 100s);
    throttle.lift();
    EXPECT_FALSE(throttle.limited());
    EXPECT_EQ(throttle.wait(1s, 0s), 0ns);
}

TEST(Throttle, IdleTimeIsNotSavedUp) {
    Throttle throttle({.bytes_per_second = 1000});
    EXPECT_EQ(throttle.wait(0s, 0s), 0ns);
    throttle.add_bytes(1000);
    EXPECT_EQ(throttle.wait(100s, 0s), 900ms);
}

} // namespace
} // namespace safering::checkpoint
