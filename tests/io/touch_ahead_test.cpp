#include "io/touch_ahead.hpp"

#include <algorithm>
#include <cstdint>

#include <gtest/gtest.h>
#include <sys/mman.h>

namespace safering::io {
namespace {

constexpr std::size_t page = 4096;
constexpr std::size_t enough = std::size_t{40} << 20; // for a thread

class TouchAhead : public testing::Test {
  protected:
    TouchAhead() {
        if (::madvise(pages.data(), page, MADV_POPULATE_WRITE) != 0)
            skip = "before Linux 5.14";
        ::madvise(pages.data(), pages.size(), MADV_DONTNEED);
    }
    ~TouchAhead() override { ::munmap(pages.data(), pages.size()); }
    void SetUp() override {
        if (skip != nullptr)
            GTEST_SKIP() << skip;
    }

    std::size_t touched() const {
        std::vector<unsigned char> resident(pages.size() / page);
        EXPECT_EQ(::mincore(pages.data(), pages.size(), resident.data()), 0);
        return static_cast<std::size_t>(std::ranges::count(resident, 1));
    }
    std::span<std::byte> part(std::size_t begin, std::size_t size) const {
        return pages.subspan(begin, size);
    }

    const std::span<std::byte> pages{
        static_cast<std::byte*>(::mmap(nullptr, enough + (32 << 20), PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)),
        enough + (32 << 20)};
    const char* skip = nullptr;
};

TEST_F(TouchAhead, TouchesAllThatIsGivenAndNothingElse) {
    // Neither begins nor ends with a page.
    touch_ahead({part(page + 1, enough), part(enough + 16 * page, 1 << 20)}).join();
    EXPECT_EQ(touched(), enough / page + 1 + 256);
}

TEST_F(TouchAhead, LeavesWhatIsThere) {
    std::ranges::fill(part(0, enough / 2), std::byte{0xA5});
    touch_ahead({part(0, enough)}).join();
    EXPECT_EQ(touched(), enough / page);
    EXPECT_EQ(std::ranges::count(part(0, enough), std::byte{0xA5}),
              static_cast<std::ptrdiff_t>(enough / 2));
    EXPECT_EQ(std::ranges::count(part(enough / 2, enough / 2), std::byte{0}),
              static_cast<std::ptrdiff_t>(enough / 2));
}

TEST_F(TouchAhead, NothingFailsWhereMemoryIsGoneOrCannotBeWritten) {
    ASSERT_EQ(::mprotect(pages.data() + (8 << 20), 4 << 20, PROT_READ), 0);
    ASSERT_EQ(::munmap(pages.data() + (24 << 20), 4 << 20), 0);
    touch_ahead({part(0, enough)}).join();
    unsigned char resident = 0;
    ASSERT_EQ(::mincore(pages.data(), page, &resident), 0);
    EXPECT_EQ(resident, 1) << "the rest was touched all the same";
}

TEST_F(TouchAhead, NoThreadForLittle) {
    EXPECT_FALSE(touch_ahead({}).joinable());
    EXPECT_FALSE(touch_ahead({part(0, 1 << 20)}).joinable());
    std::vector<std::span<std::byte>> small;
    for (std::size_t i = 0; i < 1000; ++i)
        small.push_back(part(i * page, 64 << 10));
    EXPECT_FALSE(touch_ahead(std::move(small)).joinable());
    EXPECT_EQ(touched(), 0u);
}

TEST_F(TouchAhead, EndsWhereItIsLetGo) {
    {
        const std::jthread touching = touch_ahead({part(0, enough)});
    }
    const std::size_t then = touched();
    EXPECT_LE(then, enough / page);
    ::madvise(pages.data(), pages.size(), MADV_DONTNEED);
    EXPECT_EQ(touched(), 0u);
}

} // namespace
} // namespace safering::io
