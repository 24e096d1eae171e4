#include "io/on_threads.hpp"

#include <atomic>
#include <cstdlib>
#include <fstream>

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

namespace safering {
namespace {

int work_done(std::size_t threads) {
    constexpr int parts = 1000;
    std::atomic<int> next = 0, done = 0;
    on_threads(threads, [&] {
        while (next++ < parts)
            ++done;
    });
    return done;
}

void start(std::size_t threads) {
    std::vector<std::jthread> all;
    while (all.size() < threads)
        all.emplace_back([](const std::stop_token& stop) {
            while (!stop.stop_requested())
                std::this_thread::yield();
        });
}

TEST(OnThreads, DoesAllOfTheWork) {
    for (const std::size_t threads : {0, 1, 2, 7})
        EXPECT_EQ(work_done(threads), 1000) << threads;
}

// No room for a stack is what a container's limit on threads looks like.
TEST(OnThreads, DoesAllOfItWhereNoThreadIsGranted) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "sanitizers need address space of their own";
#endif
    constexpr std::size_t threads = 64; // more than stacks that are kept of threads that have ended
    EXPECT_EXIT(
        {
            std::size_t pages = 0;
            std::ifstream("/proc/self/statm") >> pages;
            const rlim_t bytes = pages * static_cast<rlim_t>(::sysconf(_SC_PAGESIZE));
            rlimit limit{};
            limit.rlim_cur = limit.rlim_max = bytes;
            ::setrlimit(RLIMIT_AS, &limit);
            EXPECT_THROW(start(threads), std::system_error);
            std::_Exit(work_done(threads) == 1000 && !testing::Test::HasFailure() ? 0 : 1);
        },
        testing::ExitedWithCode(0), "");
}

} // namespace
} // namespace safering
