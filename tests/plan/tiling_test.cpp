#include "plan/tiling.hpp"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <safering/planner.hpp>

#include "random_plans.hpp"

namespace safering::plan {
namespace {

using Boxes = std::vector<ChunkStorageMetadata>;

bool contains(const ChunkStorageMetadata& box, const Shape& element) {
    for (std::size_t d = 0; d < element.size(); ++d)
        if (element[d] < box.offsets[d] || element[d] >= box.offsets[d] + box.sizes[d])
            return false;
    return true;
}

// How often each element is covered, by looking.
bool tiles_by_counting(const Shape& size, const Boxes& boxes) {
    bool good = true;
    oracle::for_each_index(size, [&](const Shape& element) {
        good &= std::count_if(boxes.begin(), boxes.end(),
                              [&](const auto& box) { return contains(box, element); }) == 1;
    });
    return good;
}

// The verdict agrees with counting, and the witness is true.
::testing::AssertionResult agrees(const Shape& size, const Boxes& boxes) {
    const auto fault = find_tiling_fault(size, boxes);
    if (fault.has_value() == tiles_by_counting(size, boxes))
        return ::testing::AssertionFailure() << "wrong verdict";
    if (!fault)
        return ::testing::AssertionSuccess();
    const auto covered = std::count_if(
        boxes.begin(), boxes.end(), [&](const auto& box) { return contains(box, fault->element); });
    if (fault->code == Errc::plan_hole && covered == 0)
        return ::testing::AssertionSuccess();
    if (fault->code == Errc::plan_overlap && fault->first != fault->second &&
        contains(boxes[fault->first], fault->element) &&
        contains(boxes[fault->second], fault->element))
        return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << "false witness";
}

TEST(Tiling, EveryPairAndTripleOfBoxesOfSmallShapes) {
    for (const Shape& size : {Shape{}, Shape{3}, Shape{2, 2}, Shape{3, 2}}) {
        Boxes all;
        oracle::for_each_box(size, 0, [&](const Shape& offsets, const Shape& sizes) {
            all.push_back({offsets, sizes});
        });
        ASSERT_TRUE(agrees(size, {}));
        for (const auto& a : all) {
            ASSERT_TRUE(agrees(size, {a}));
            for (const auto& b : all) {
                ASSERT_TRUE(agrees(size, {a, b}));
                for (const auto& c : all)
                    ASSERT_TRUE(agrees(size, {a, b, c}));
            }
        }
    }
}

// Moves one box's face, drops a box, or repeats one.
void corrupt(oracle::Random& random, const Shape& size, Boxes& boxes) {
    const std::size_t b = random.below(boxes.size());
    const std::size_t kind = random.below(size.empty() ? 2 : 4);
    if (kind == 0) {
        boxes.erase(boxes.begin() + static_cast<std::ptrdiff_t>(b));
    } else if (kind == 1) {
        boxes.push_back(boxes[b]);
    } else {
        const std::size_t d = random.below(size.size());
        boxes[b].offsets[d] = random.below(size[d]);
        boxes[b].sizes[d] = random.below(size[d] - boxes[b].offsets[d] + 1);
    }
}

RC_GTEST_PROP(Tiling, RandomPartitionsAndCorruptionsAgreeWithCounting, (std::uint64_t seed)) {
    oracle::Random random(seed);
    for (int round = 0; round < 20; ++round) {
        const Shape size = oracle::random_shape(random, 4, 6);
        Boxes boxes = oracle::random_partition(random, size, random.below(30));
        RC_ASSERT(!find_tiling_fault(size, boxes).has_value());
        RC_ASSERT(bool(agrees(size, boxes)));
        for (std::size_t n = 1 + random.below(3); n > 0 && !boxes.empty(); --n)
            corrupt(random, size, boxes);
        RC_ASSERT(bool(agrees(size, boxes)));
    }
}

TEST(Tiling, ManySplitDimensionsHaveTooManyCornersToList) {
    // 2^14 boxes of one element and as many corners each.
    const Shape size(14, 2);
    Boxes boxes;
    oracle::for_each_index(size, [&](const Shape& at) { boxes.push_back({at, Shape(14, 1)}); });
    EXPECT_FALSE(find_tiling_fault(size, boxes).has_value());
    const ChunkStorageMetadata gone = boxes[4711];
    boxes[4711] = boxes[815];
    const auto fault = find_tiling_fault(size, boxes);
    ASSERT_TRUE(fault.has_value());
    if (fault->code == Errc::plan_hole)
        EXPECT_EQ(fault->element, gone.offsets);
    else
        EXPECT_EQ(fault->element, boxes[815].offsets);
}

TEST(Tiling, RandomPartitionsOfManyDimensionsAgreeWithCounting) {
    const std::uint64_t seed = std::random_device{}();
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    oracle::Random random(seed);
    const Shape size(16, 2);
    for (int round = 0; round < 4; ++round) {
        Boxes boxes = oracle::random_partition(random, size, 600);
        ASSERT_GT(boxes.size(), 80u); // so many that their corners are not listed
        ASSERT_FALSE(find_tiling_fault(size, boxes).has_value());
        corrupt(random, size, boxes);
        ASSERT_TRUE(agrees(size, boxes));
    }
}

TEST(Tiling, AMillionChunks) {
    const Shape size{4000, 1000};
    Boxes boxes;
    for (std::uint64_t row = 0; row < 4000; row += 4)
        for (std::uint64_t column = 0; column < 1000; ++column)
            boxes.push_back({{row, column}, {4, 1}});
    EXPECT_FALSE(find_tiling_fault(size, boxes).has_value());
    boxes[123456].sizes[0] = 3;
    const auto fault = find_tiling_fault(size, boxes);
    ASSERT_TRUE(fault.has_value());
    EXPECT_EQ(fault->code, Errc::plan_hole);
    EXPECT_EQ(fault->element, (Shape{123 * 4 + 3, 456}));
}

TEST(Tiling, HugeTensorsAreNoMatter) {
    const std::uint64_t half = std::uint64_t{1} << 61;
    EXPECT_FALSE(find_tiling_fault({2 * half}, Boxes{{{0}, {half}}, {{half}, {half}}}).has_value());
    EXPECT_EQ(find_tiling_fault({4 * half}, Boxes{})->code, Errc::plan_overflow);
    EXPECT_EQ(find_tiling_fault({0, half, 4}, Boxes{})->code, Errc::plan_overflow);
}

TEST(Tiling, CheckTilingNamesTheFault) {
    const auto message = [](const Shape& size, const Boxes& boxes) {
        const auto result = check_tiling("w", size, boxes);
        return result ? std::string() : result.error().tensor + ": " + result.error().detail;
    };
    EXPECT_EQ(message({4, 4}, {{{0, 0}, {2, 4}}, {{2, 0}, {2, 4}}}), "");
    EXPECT_EQ(message({0, 4}, {}), "");
    EXPECT_EQ(message({4}, {{{4}, {0}}, {{0}, {4}}}), "");
    EXPECT_EQ(message({4, 4}, {{{0, 0}, {2, 4}}}),
              "w: element [2, 0] of a tensor of shape [4, 4] is in no chunk");
    EXPECT_EQ(message({4}, {{{0}, {3}}, {{2}, {2}}}),
              "w: element [2] of a tensor of shape [4] is in chunks [3] at [0] and [2] at [2]");
    EXPECT_EQ(message({4}, {{{3}, {2}}}),
              "w: chunk [2] at [3] reaches outside a tensor of shape [4]");
    EXPECT_EQ(message({4}, {{{~std::uint64_t{0}}, {2}}}),
              "w: chunk [2] at [18446744073709551615] reaches outside a tensor of shape [4]");
    EXPECT_EQ(message({4}, {{{0, 0}, {4, 1}}}),
              "w: expected the rank of a tensor of shape [4], found chunk [4, 1] at [0, 0]");
}

} // namespace
} // namespace safering::plan
