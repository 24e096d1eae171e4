// Bytes that a taker copies out of another process: no byte is touched that is not there.
#include "checkpoint/peer_scatter.hpp"

#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include <gtest/gtest.h>

namespace safering::checkpoint {
namespace {

constexpr std::uint64_t columns = 1 << 16, first_column = 60000, width = 100;
constexpr std::uint64_t page = 4096;

// Pages of an image among others that nobody may read.
class Fenced {
  public:
    explicit Fenced(std::uint64_t bytes) : bytes_(bytes) {
        all_ = ::mmap(nullptr, bytes + 2 * fence, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        EXPECT_NE(all_, MAP_FAILED);
        EXPECT_EQ(::mprotect(data(), bytes, PROT_READ | PROT_WRITE), 0);
    }
    ~Fenced() { ::munmap(all_, bytes_ + 2 * fence); }
    Fenced(const Fenced&) = delete;
    Fenced& operator=(const Fenced&) = delete;

    std::byte* data() const { return static_cast<std::byte*>(all_) + fence; }

  private:
    static constexpr std::uint64_t fence = columns;
    std::uint64_t bytes_;
    void* all_ = nullptr;
};

TEST(PeerScatter, GapsAtTheEndsOfACellMayBeMissing) {
    // The cell begins and ends in gaps between rows, of which the owner has read nothing.
    const ByteRange window{page, 2 * columns};
    const std::uint64_t image_begin = first_column / page * page;
    const std::uint64_t image_end = (columns + first_column + width + page - 1) / page * page;
    const Fenced image(image_end - image_begin);
    for (std::uint64_t row = 0; row < 2; ++row)
        for (std::uint64_t i = 0; i < width; ++i)
            image.data()[row * columns + first_column + i - image_begin] =
                static_cast<std::byte>(row * width + i);
    const std::uint64_t address =
        reinterpret_cast<std::uint64_t>(image.data()) + (window.begin - image_begin);
    for (const std::int64_t stride : {1, 2}) {
        const auto row_stride = static_cast<std::int64_t>(width) * stride;
        const auto copy = plan::BoxCopy::make(Dtype::u8, {2, columns}, {0, first_column},
                                              {2, width}, {row_stride, stride});
        ASSERT_TRUE(copy.has_value());
        std::vector<std::byte> memory(2 * static_cast<std::size_t>(row_stride));
        const auto taken = PeerScatter().scatter(*copy, ::getpid(), address, memory.data(), window);
        ASSERT_TRUE(taken.has_value()) << taken.error().message();
        for (std::size_t i = 0; i < 2 * width; ++i)
            ASSERT_EQ(memory[i * static_cast<std::size_t>(stride)], static_cast<std::byte>(i));
    }
}

} // namespace
} // namespace safering::checkpoint
