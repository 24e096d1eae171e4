#include "plan/box.hpp"

#include <algorithm>
#include <cstring>
#include <random>

#include <gtest/gtest.h>
#include <xxhash.h>

#include "oracle.hpp"
#include "plan/copy_kernels.hpp"

namespace safering::plan {
namespace {

using oracle::MemoryLayout;

std::vector<Shape> small_shapes() {
    std::vector<Shape> shapes{{}};
    for (std::uint64_t a = 1; a <= 3; ++a) {
        shapes.push_back({a});
        for (std::uint64_t b = 1; b <= 3; ++b) {
            shapes.push_back({a, b});
            for (std::uint64_t c = 1; c <= 3; ++c)
                shapes.push_back({a, b, c});
        }
    }
    return shapes;
}

std::uint64_t volume(const Shape& shape) {
    return std::accumulate(shape.begin(), shape.end(), std::uint64_t{1}, std::multiplies<>());
}

// Which bytes of the stored tensor belong to the box.
std::vector<bool> mask(std::uint64_t itemsize, const Shape& stored, const Shape& offsets,
                       const Shape& sizes) {
    std::vector<bool> inside(volume(stored) * itemsize);
    for (const auto& element :
         oracle::elements(itemsize, stored, offsets, sizes, Strides(stored.size(), 0)))
        std::fill_n(inside.begin() + static_cast<std::ptrdiff_t>(element.file), itemsize, true);
    return inside;
}

Dtype unsigned_dtype(std::uint64_t itemsize) {
    switch (itemsize) {
    case 1: return Dtype::u8;
    case 2: return Dtype::u16;
    case 4: return Dtype::u32;
    default: return Dtype::u64;
    }
}

TEST(FileBox, RunsOfEveryBoxOfEverySmallShapeInEveryWindow) {
    for (const std::uint64_t itemsize : {1u, 2u})
        for (const Shape& stored : small_shapes())
            oracle::for_each_box(stored, 0, [&](const Shape& offsets, const Shape& sizes) {
                const auto box = FileBox::make(unsigned_dtype(itemsize), stored, offsets, sizes);
                ASSERT_TRUE(box.has_value());
                const std::vector<bool> inside = mask(itemsize, stored, offsets, sizes);
                const auto first = std::find(inside.begin(), inside.end(), true);
                const auto count =
                    static_cast<std::uint64_t>(std::count(inside.begin(), inside.end(), true));
                ASSERT_EQ(box->bytes(), count);
                if (count > 0) {
                    ASSERT_EQ(box->hull().begin,
                              static_cast<std::uint64_t>(first - inside.begin()));
                    ASSERT_TRUE(inside[box->hull().end - 1]);
                    ASSERT_EQ(
                        std::count(first,
                                   inside.begin() + static_cast<std::ptrdiff_t>(box->hull().end),
                                   true),
                        static_cast<std::ptrdiff_t>(count));
                } else {
                    ASSERT_TRUE(box->hull().empty());
                }
                ASSERT_EQ(box->contiguous(), box->hull().size() == count);
                const std::uint64_t total = inside.size();
                for (std::uint64_t begin = 0; begin <= total; ++begin)
                    for (std::uint64_t end = begin; end <= total + 1; ++end) {
                        std::vector<bool> seen(total);
                        std::uint64_t last = begin;
                        box->for_each_run({begin, end}, [&](ByteRange run) {
                            ASSERT_LT(run.begin, run.end);
                            ASSERT_GE(run.begin, last);
                            ASSERT_LE(run.end, std::min(end, total));
                            last = run.end;
                            for (std::uint64_t i = run.begin; i < run.end; ++i)
                                seen[i] = true;
                        });
                        for (std::uint64_t i = 0; i < total; ++i)
                            ASSERT_EQ(seen[i], inside[i] && i >= begin && i < end);
                    }
            });
}

TEST(FileBox, CollapsesDimensionsIntoTheLongestRuns) {
    // Whole rows join, and the middle dimension joins the outer loop.
    const auto rows = FileBox::make(Dtype::f32, {4, 4, 8}, {1, 0, 0}, {2, 4, 8});
    ASSERT_TRUE(rows.has_value());
    EXPECT_TRUE(rows->contiguous());
    EXPECT_EQ(rows->hull(), (ByteRange{128, 384}));
    const auto inner = FileBox::make(Dtype::f32, {4, 4, 8}, {0, 0, 2}, {4, 4, 2});
    ASSERT_TRUE(inner.has_value());
    EXPECT_EQ(inner->run_bytes(), 8u);
    EXPECT_EQ(inner->bytes(), 128u);
    const auto outer = FileBox::make(Dtype::f32, {4, 4, 8}, {0, 1, 0}, {4, 2, 8});
    ASSERT_TRUE(outer.has_value());
    EXPECT_EQ(outer->run_bytes(), 64u);
}

// Starting by division: a window far into a box of 2^40 runs is found at once.
TEST(FileBox, FindsAWindowFarInsideAtOnce) {
    const std::uint64_t rows = std::uint64_t{1} << 40;
    const auto box = FileBox::make(Dtype::u8, {rows, 8}, {0, 2}, {rows, 3});
    ASSERT_TRUE(box.has_value());
    std::vector<ByteRange> runs;
    const std::uint64_t at = (rows - 5) * 8;
    box->for_each_run({at, at + 16}, [&](ByteRange run) { runs.push_back(run); });
    EXPECT_EQ(runs, (std::vector<ByteRange>{{at + 2, at + 5}, {at + 10, at + 13}}));
}

TEST(FileBox, NamesWhatIsWrong) {
    const auto code = [](Dtype dtype, const Shape& stored, const Shape& offsets,
                         const Shape& sizes) {
        const auto box = FileBox::make(dtype, stored, offsets, sizes);
        return box ? std::error_code() : box.error().code;
    };
    const std::uint64_t huge = std::uint64_t{1} << 62;
    EXPECT_EQ(code(Dtype::u8, {4}, {0, 0}, {4}), Errc::plan_shape_mismatch);
    EXPECT_EQ(code(Dtype::u8, {4}, {0}, {}), Errc::plan_shape_mismatch);
    EXPECT_EQ(code(Dtype::u8, {4}, {1}, {4}), Errc::plan_out_of_bounds);
    EXPECT_EQ(code(Dtype::u8, {4}, {5}, {0}), Errc::plan_out_of_bounds);
    EXPECT_EQ(code(Dtype::u8, {4}, {~std::uint64_t{0}}, {1}), Errc::plan_out_of_bounds);
    EXPECT_EQ(code(Dtype::u16, {huge}, {0}, {1}), Errc::plan_overflow);
    EXPECT_EQ(code(Dtype::u8, {0, huge, 2}, {0, 0, 0}, {0, 1, 1}), Errc::plan_overflow);
    EXPECT_EQ(code(Dtype::f4, {4}, {1}, {2}), Errc::plan_partial_byte);
    EXPECT_EQ(code(Dtype::f4, {3}, {0}, {3}), Errc::plan_partial_byte);
    EXPECT_EQ(code(Dtype::f4, {2, 3}, {0, 0}, {2, 2}), Errc::plan_partial_byte);
    EXPECT_EQ(code(Dtype::f4, {2, 3}, {0, 0}, {2, 3}), std::error_code());
    EXPECT_EQ(code(Dtype::f4, {2, 4}, {0, 2}, {2, 2}), std::error_code());
    EXPECT_EQ(code(Dtype::f6_e2m3, {2, 8}, {0, 4}, {2, 4}), std::error_code());
    EXPECT_EQ(code(Dtype::f6_e2m3, {2, 8}, {0, 2}, {2, 4}), Errc::plan_partial_byte);
    EXPECT_EQ(code(Dtype::u8, {0, 4}, {0, 0}, {0, 4}), std::error_code());
    EXPECT_EQ(code(Dtype::u8, {}, {}, {}), std::error_code());
}

// Checks gather (with its digest), digest_of_image and scatter of one box in one window.
class CopyCheck {
  public:
    CopyCheck(std::uint64_t itemsize, const Shape& stored, const Shape& offsets, const Shape& sizes,
              const MemoryLayout& layout)
        : memory_(static_cast<std::size_t>(layout.elements) * itemsize),
          source_(volume(stored) * itemsize, -1) {
        const auto copy =
            BoxCopy::make(unsigned_dtype(itemsize), stored, offsets, sizes, layout.strides);
        EXPECT_TRUE(copy.has_value());
        copy_ = *copy;
        for (std::size_t i = 0; i < memory_.size(); ++i)
            memory_[i] = static_cast<std::byte>(i * 131 + (i >> 8) * 17 + 7);
        first_ = layout.first * static_cast<std::int64_t>(itemsize);
        for (const auto& element :
             oracle::elements(itemsize, stored, offsets, sizes, layout.strides))
            for (std::uint64_t i = 0; i < itemsize; ++i)
                source_[element.file + i] = first_ + element.memory + static_cast<std::int64_t>(i);
    }

    std::uint64_t file_bytes() const { return source_.size(); }
    const BoxCopy& copy() const { return copy_; }

    ::testing::AssertionResult check(ByteRange window) {
        const std::size_t guard = 8;
        image_.assign(guard + window.size() + guard, std::byte{0xEE});
        copy_.gather(memory_.data() + first_, image_.data() + guard, window, &digest_);
        expected_.assign(image_.size(), std::byte{0xEE});
        in_order_.clear();
        for (std::uint64_t i = window.begin; i < std::min(window.end, file_bytes()); ++i)
            if (source_[i] >= 0) {
                const std::byte byte = memory_[static_cast<std::size_t>(source_[i])];
                expected_[guard + i - window.begin] = byte;
                in_order_.push_back(byte);
            }
        if (image_ != expected_)
            return ::testing::AssertionFailure() << "gather, window " << window;
        const std::uint64_t hash = XXH3_64bits(in_order_.data(), in_order_.size());
        if (digest_.value() != hash)
            return ::testing::AssertionFailure() << "digest of gather, window " << window;
        if (digest_of_image(copy_.file_box(), image_.data() + guard, window) != hash)
            return ::testing::AssertionFailure() << "digest of image, window " << window;
        std::ranges::fill(image_, std::byte{0xEE});
        if (copy_.gather_digested(memory_.data() + first_, image_.data() + guard, window,
                                  digest_) != hash ||
            image_ != expected_)
            return ::testing::AssertionFailure() << "gather_digested, window " << window;
        digest_.reset();
        return check_scatter(window, guard);
    }

  private:
    ::testing::AssertionResult check_scatter(ByteRange window, std::size_t guard) {
        for (std::size_t i = 0; i < image_.size(); ++i)
            image_[i] = static_cast<std::byte>(i * 37 + 11);
        filled_.assign(memory_.size(), std::byte{0x55});
        copy_.scatter(image_.data() + guard, filled_.data() + first_, window);
        expected_.assign(memory_.size(), std::byte{0x55});
        for (std::uint64_t i = window.begin; i < std::min(window.end, file_bytes()); ++i)
            if (source_[i] >= 0)
                expected_[static_cast<std::size_t>(source_[i])] = image_[guard + i - window.begin];
        if (filled_ != expected_)
            return ::testing::AssertionFailure() << "scatter, window " << window;
        return ::testing::AssertionSuccess();
    }

    BoxCopy copy_;
    std::vector<std::byte> memory_;
    std::vector<std::int64_t> source_; // memory byte behind each file byte, -1 outside the box
    std::int64_t first_ = 0;
    Digest digest_;
    std::vector<std::byte> image_, expected_, in_order_, filled_;
};

TEST(BoxCopy, EveryBoxOfEverySmallShapeInEveryWindowFromEveryStrideOrder) {
    for (const Shape& stored : small_shapes())
        oracle::for_each_box(stored, 1, [&](const Shape& offsets, const Shape& sizes) {
            std::vector<std::size_t> order(stored.size());
            std::iota(order.begin(), order.end(), 0);
            do {
                for (unsigned negative = 0; negative < 1u << stored.size(); ++negative) {
                    const auto layout = oracle::memory_layout(sizes, order, negative, 0);
                    CopyCheck check(1, stored, offsets, sizes, layout);
                    for (std::uint64_t begin = 0; begin <= check.file_bytes(); ++begin)
                        for (std::uint64_t end = begin; end <= check.file_bytes(); ++end)
                            ASSERT_TRUE(check.check({begin, end}));
                }
            } while (std::next_permutation(order.begin(), order.end()));
        });
}

TEST(BoxCopy, RandomBoxesStridesElementsAndWindows) {
    const unsigned seed = std::random_device{}();
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    const auto below = [&](std::uint64_t n) { return random() % n; };
    for (int round = 0; round < 3000; ++round) {
        const std::uint64_t itemsize = std::uint64_t{1} << below(4);
        const std::size_t rank = 1 + below(5);
        Shape stored, offsets, sizes;
        for (std::size_t d = 0; d < rank; ++d) {
            stored.push_back(1 + below(rank > 3 ? 6 : 24));
            sizes.push_back(below(3) == 0 ? stored[d] : 1 + below(stored[d]));
            offsets.push_back(below(stored[d] - sizes[d] + 1));
        }
        std::vector<std::size_t> order(rank);
        std::iota(order.begin(), order.end(), 0);
        if (below(3) != 0)
            std::shuffle(order.begin(), order.end(), random);
        const auto layout =
            oracle::memory_layout(sizes, order, below(2) == 0 ? 0 : static_cast<unsigned>(random()),
                                  static_cast<std::int64_t>(below(3) / 2));
        CopyCheck check(itemsize, stored, offsets, sizes, layout);
        ASSERT_TRUE(check.check({0, check.file_bytes()}));
        for (int window = 0; window < 4; ++window) {
            const std::uint64_t begin = below(check.file_bytes() + 1);
            ASSERT_TRUE(check.check({begin, begin + below(check.file_bytes() - begin + 1)}));
        }
    }
}

// Sizes at which tiles, streaming stores and digest blocks come into play.
TEST(BoxCopy, LargeBoxes) {
    struct Case {
        std::uint64_t itemsize;
        Shape stored, offsets, sizes;
        std::vector<std::size_t> order;
    };
    const std::vector<Case> cases{
        {1, {1'000'003}, {0}, {1'000'003}, {0}},
        {1, {700'000}, {13}, {600'001}, {0}},
        {4, {70, 5000}, {1, 7}, {60, 4500}, {0, 1}}, // rows that are streamed
        {2, {300, 2000}, {0, 3}, {300, 512}, {0, 1}},
        {1, {517, 333}, {0, 0}, {517, 333}, {1, 0}},
        {2, {333, 517}, {2, 3}, {330, 511}, {1, 0}},
        {4, {257, 300}, {0, 0}, {257, 300}, {1, 0}},
        {8, {130, 140}, {0, 0}, {130, 140}, {1, 0}},
        {4, {20, 30, 40}, {1, 2, 3}, {18, 25, 33}, {0, 2, 1}},
        {4, {20, 30, 40}, {0, 0, 0}, {20, 30, 40}, {2, 1, 0}},
        {2, {64, 96, 3, 3}, {0, 0, 0, 0}, {64, 96, 3, 3}, {0, 2, 3, 1}}, // channels last
    };
    for (const Case& one : cases)
        for (const std::int64_t pad : {0, 1}) {
            CopyCheck check(one.itemsize, one.stored, one.offsets, one.sizes,
                            oracle::memory_layout(one.sizes, one.order, 0, pad));
            const std::uint64_t end = check.file_bytes();
            ASSERT_TRUE(check.check({0, end}));
            ASSERT_TRUE(check.check({1, end - 1}));
            ASSERT_TRUE(check.check({end / 3 + 1, end / 2 + 2}));
            ASSERT_TRUE(check.check({end / 2 + 1, end / 2 + 2}));
        }
}

TEST(BoxCopy, ZeroStridesRepeatTheSource) {
    const auto copy = BoxCopy::make(Dtype::u16, {3, 4}, {0, 0}, {3, 4}, {0, 1});
    ASSERT_TRUE(copy.has_value());
    const std::uint16_t row[4] = {1, 2, 3, 4};
    std::uint16_t image[12] = {};
    copy->gather(reinterpret_cast<const std::byte*>(row), reinterpret_cast<std::byte*>(image),
                 {0, 24});
    for (unsigned i = 0; i < 12; ++i)
        EXPECT_EQ(image[i], row[i % 4]);
}

TEST(BoxCopy, SubByteElementsAreBytesWhereTheyCan) {
    // 4-bit, rows of 8 elements = 4 bytes, columns 2..6 = bytes 1..3 of each row.
    const auto copy = BoxCopy::make(Dtype::f4, {3, 8}, {1, 2}, {2, 4}, {});
    ASSERT_TRUE(copy.has_value());
    EXPECT_FALSE(copy->memory_contiguous());
    const std::vector<std::byte> memory{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}};
    std::vector<std::byte> image(12, std::byte{0xEE});
    copy->gather(memory.data(), image.data(), {0, 12});
    std::vector<std::byte> expected(12, std::byte{0xEE});
    expected[5] = std::byte{1};
    expected[6] = std::byte{2};
    expected[9] = std::byte{3};
    expected[10] = std::byte{4};
    EXPECT_EQ(image, expected);
    EXPECT_TRUE(BoxCopy::make(Dtype::f4, {3, 8}, {1, 2}, {2, 4}, {4, 1}).has_value());
    const auto strided = BoxCopy::make(Dtype::f4, {3, 8}, {1, 2}, {2, 4}, {8, 1});
    ASSERT_FALSE(strided.has_value());
    EXPECT_EQ(strided.error().code, Errc::plan_partial_byte);
}

TEST(BoxCopy, SaysWhetherMemoryIsTheFilesBytes) {
    EXPECT_TRUE(BoxCopy::make(Dtype::f32, {4, 6}, {1, 0}, {2, 6}, {})->memory_contiguous());
    EXPECT_TRUE(BoxCopy::make(Dtype::f32, {4, 6}, {1, 0}, {2, 6}, {6, 1})->memory_contiguous());
    EXPECT_TRUE(BoxCopy::make(Dtype::f32, {4, 6}, {1, 0}, {1, 6}, {99, 1})->memory_contiguous());
    EXPECT_FALSE(BoxCopy::make(Dtype::f32, {4, 6}, {1, 0}, {2, 6}, {7, 1})->memory_contiguous());
    EXPECT_FALSE(BoxCopy::make(Dtype::f32, {4, 6}, {1, 0}, {2, 5}, {})->memory_contiguous());
    EXPECT_TRUE(BoxCopy::make(Dtype::f32, {}, {}, {}, {})->memory_contiguous());
}

TEST(BoxCopy, RefusesStridesThatOverflow) {
    const std::int64_t far = std::int64_t{1} << 62;
    const auto code = [](const Strides& strides) {
        const auto copy = BoxCopy::make(Dtype::f32, {4, 4}, {0, 0}, {4, 4}, strides);
        return copy ? std::error_code() : copy.error().code;
    };
    EXPECT_EQ(code({far, 1}), Errc::plan_overflow);
    EXPECT_EQ(code({far / 4, 1}), Errc::plan_overflow);
    EXPECT_EQ(code({-far, 1}), Errc::plan_overflow);
    EXPECT_EQ(code({1}), Errc::plan_shape_mismatch);
    // Each dimension's extent fits, their sum does not.
    const auto sum = BoxCopy::make(Dtype::u8, {2, 2}, {0, 0}, {2, 2}, {far, far});
    ASSERT_FALSE(sum.has_value());
    EXPECT_EQ(sum.error().code, Errc::plan_overflow);
}

TEST(CopyKernels, StreamingCopiesEveryAlignmentAndLength) {
    std::vector<std::byte> from(1024), to(1024), expected;
    for (std::size_t i = 0; i < from.size(); ++i)
        from[i] = static_cast<std::byte>(i * 7 + 1);
    for (std::size_t a = 0; a < 65; ++a)
        for (std::size_t b = 0; b < 65; b += 3)
            for (const std::size_t bytes : {0, 1, 63, 64, 65, 127, 128, 300, 511, 777}) {
                to.assign(1024, std::byte{0});
                expected = to;
                copy_streaming(to.data() + a, from.data() + b, bytes);
                streaming_fence();
                std::memcpy(expected.data() + a, from.data() + b, bytes);
                ASSERT_EQ(to, expected) << a << ' ' << b << ' ' << bytes;
            }
}

} // namespace
} // namespace safering::plan
