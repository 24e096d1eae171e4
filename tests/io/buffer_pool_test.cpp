// A fixed number of buffers, first come first served.
#include "io/buffer_pool.hpp"

#include <atomic>
#include <set>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace safering::test {

namespace {

using Buffer = BufferPool::Buffer;

TEST(BufferPool, HandsOutDistinctAlignedBuffers) {
    const auto pool = value_or_throw(BufferPool::create(std::size_t{4} << 20, 3));
    std::vector<Buffer> taken;
    std::set<std::byte*> seen;
    while (Buffer buffer = pool->try_acquire()) {
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % (2u << 20), 0u);
        EXPECT_EQ(buffer.span().size(), std::size_t{4} << 20);
        buffer.span().front() = buffer.span().back() = std::byte{1};
        seen.insert(buffer.data());
        taken.push_back(std::move(buffer));
    }
    EXPECT_EQ(seen.size(), 3u);
    taken.clear();
    EXPECT_TRUE(pool->try_acquire());
}

TEST(BufferPool, MovedFromBuffersAreEmpty) {
    const auto pool = value_or_throw(BufferPool::create(4096, 2));
    Buffer one = pool->try_acquire();
    Buffer two = std::move(one);
    EXPECT_FALSE(one);
    EXPECT_TRUE(two);
    two = pool->try_acquire();
    EXPECT_TRUE(pool->try_acquire()) << "assignment returned the buffer it replaced";
}

TEST(BufferPool, ServesWaitersInOrder) {
    const auto pool = value_or_throw(BufferPool::create(4096, 1));
    Buffer held = pool->try_acquire();
    std::vector<int> order;
    Buffer kept;
    for (int i = 0; i < 3; ++i)
        pool->acquire([&, i](Buffer buffer) {
            order.push_back(i);
            if (i == 1)
                kept = std::move(buffer);
        });
    EXPECT_TRUE(order.empty());
    held = {};
    EXPECT_EQ(order, (std::vector{0, 1}));
    kept = {};
    EXPECT_EQ(order, (std::vector{0, 1, 2}));
    bool at_once = false;
    pool->acquire([&](Buffer buffer) { at_once = static_cast<bool>(buffer); });
    EXPECT_TRUE(at_once);
}

TEST(BufferPool, LongQueuesOfWaitersDoNotNest) {
    const auto pool = value_or_throw(BufferPool::create(4096, 1));
    Buffer held = pool->try_acquire();
    int served = 0;
    for (int i = 0; i < 200'000; ++i)
        pool->acquire([&](const Buffer&) { ++served; });
    held = {};
    EXPECT_EQ(served, 200'000);
}

TEST(BufferPool, IsThreadSafe) {
    const auto pool = value_or_throw(BufferPool::create(4096, 3));
    std::atomic<int> served = 0, in_use = 0;
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t)
        threads.emplace_back([&] {
            for (int i = 0; i < 1000; ++i)
                pool->acquire([&](Buffer buffer) {
                    EXPECT_LE(++in_use, 3);
                    buffer.span().front() = std::byte{1};
                    --in_use;
                    ++served;
                });
        });
    for (std::thread& thread : threads)
        thread.join();
    EXPECT_EQ(served, 4000);
}

TEST(BufferPool, RefusesWhatDoesNotFit) {
    const std::pair<std::size_t, unsigned> wishes[] = {{std::size_t{1} << 46, 4},
                                                       {std::size_t{1} << 62, 4}, // 2^64 together
                                                       {(std::size_t{1} << 62) + 4096, 4},
                                                       {~std::size_t{4095}, 1}};
    for (const auto& [bytes, count] : wishes) {
        const auto pool = BufferPool::create(bytes, count);
        ASSERT_FALSE(pool) << bytes;
        EXPECT_EQ(pool.error().code, std::errc::not_enough_memory);
    }
}

TEST(BufferPool, IsContendedWhileSomebodyWaits) {
    const auto pool = value_or_throw(BufferPool::create(4096, 1));
    EXPECT_FALSE(pool->contended());
    Buffer held = pool->try_acquire();
    EXPECT_FALSE(pool->try_acquire());
    EXPECT_FALSE(pool->contended()) << "an attempt does not wait";
    Buffer served;
    pool->acquire([&](Buffer buffer) { served = std::move(buffer); });
    EXPECT_TRUE(pool->contended());
    held = {};
    EXPECT_TRUE(served);
    EXPECT_FALSE(pool->contended());
}

TEST(BufferPool, StaysOutOfChildren) {
    const auto pool = value_or_throw(BufferPool::create(std::size_t{2} << 20, 1));
    const Buffer buffer = pool->try_acquire();
    const pid_t child = ::fork();
    if (child == 0) {
        // write() reports unmapped memory without the crash that a sanitizer would print.
        int pipe[2];
        const bool absent = ::pipe(pipe) == 0 && ::write(pipe[1], buffer.data(), 1) < 0;
        ::_exit(absent && errno == EFAULT ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
}

} // namespace

} // namespace safering::test
