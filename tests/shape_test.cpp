// Shape against std::vector, whose names and meanings it has, on both sides of where it goes to the heap.
#include <gtest/gtest.h>

#include <type_traits>
#include <vector>

#include <safering/shape.hpp>

namespace safering::test {
namespace {

using Numbers = std::vector<std::uint64_t>;

static_assert(sizeof(Shape) == 32);
static_assert(std::is_nothrow_move_constructible_v<Shape>);
static_assert(std::is_nothrow_move_assignable_v<Shape>);

Numbers numbers(std::size_t count, std::uint64_t first = 1) {
    Numbers out(count);
    for (std::size_t i = 0; i < count; ++i)
        out[i] = first + i;
    return out;
}

Shape shape_of(const Numbers& values) {
    return Shape(values.begin(), values.end());
}

Numbers values_of(const Shape& shape) {
    EXPECT_EQ(shape.empty(), shape.size() == 0);
    EXPECT_EQ(static_cast<std::size_t>(shape.end() - shape.begin()), shape.size());
    EXPECT_LE(shape.size(), shape.capacity());
    return Numbers(shape.begin(), shape.end());
}

constexpr std::size_t most = 9; // three times what is in place

TEST(Shape, HoldsWhatIsPutIn) {
    Shape pushed;
    for (std::size_t count = 0; count <= most; ++count) {
        const Numbers expected = numbers(count);
        const Shape made = shape_of(expected);
        EXPECT_EQ(values_of(made), expected);
        EXPECT_EQ(values_of(pushed), expected);
        EXPECT_EQ(values_of(Shape(count, 7)), Numbers(count, 7));
        EXPECT_EQ(Numbers(made.rbegin(), made.rend()), Numbers(expected.rbegin(), expected.rend()));
        if (count > 0) {
            EXPECT_EQ(made.front(), expected.front());
            EXPECT_EQ(made.back(), expected.back());
            EXPECT_EQ(made[count - 1], expected[count - 1]);
        }
        pushed.push_back(count + 1);
    }
    for (std::size_t count = most; count > 0; --count) {
        pushed.pop_back();
        EXPECT_EQ(values_of(pushed), numbers(count));
    }
}

TEST(Shape, CopiesAndMovesBetweenAllSizes) {
    for (std::size_t from = 0; from <= most; ++from)
        for (std::size_t to = 0; to <= most; ++to) {
            const Numbers expected = numbers(from), before = numbers(to, 100);
            Shape source = shape_of(expected), target = shape_of(before);
            target = source;
            EXPECT_EQ(values_of(target), expected);
            target.push_back(50); // a copy of its own
            EXPECT_EQ(values_of(source), expected);
            Shape other = shape_of(before);
            other = std::move(source);
            EXPECT_EQ(values_of(other), expected);
            EXPECT_TRUE(source.empty()); // and can be used again
            source.push_back(3);
            EXPECT_EQ(values_of(source), Numbers{3});
            Shape made = std::move(other);
            EXPECT_EQ(values_of(made), expected);
            Shape swapped = shape_of(before);
            swapped.swap(made);
            EXPECT_EQ(values_of(swapped), expected);
            EXPECT_EQ(values_of(made), before);
            made.resize(from, 9);
            Numbers resized = before;
            resized.resize(from, 9);
            EXPECT_EQ(values_of(made), resized);
            made.assign(to, 4);
            EXPECT_EQ(values_of(made), Numbers(to, 4));
        }
}

TEST(Shape, AssignsToItself) {
    for (const std::size_t count : {2u, 5u}) {
        Shape shape = shape_of(numbers(count));
        Shape& same = shape;
        shape = same;
        EXPECT_EQ(values_of(shape), numbers(count));
        shape = std::move(same);
        EXPECT_EQ(values_of(shape), numbers(count));
        shape = {4, 5};
        EXPECT_EQ(values_of(shape), (Numbers{4, 5}));
    }
}

TEST(Shape, OrdersAsVectorsDo) {
    std::vector<Numbers> all;
    for (std::size_t count = 0; count <= 5; ++count)
        for (const std::uint64_t first : {0u, 1u, 2u})
            all.push_back(numbers(count, first));
    for (const Numbers& a : all)
        for (const Numbers& b : all) {
            EXPECT_EQ(shape_of(a) == shape_of(b), a == b);
            EXPECT_EQ(shape_of(a) <=> shape_of(b), a <=> b);
        }
}

TEST(Shape, KeepsWhatItHasRoomFor) {
    Shape shape;
    shape.reserve(6);
    const std::uint64_t* before = shape.data();
    shape = {1, 2, 3, 4, 5, 6};
    EXPECT_EQ(shape.data(), before);
    shape.clear();
    EXPECT_TRUE(shape.empty());
    EXPECT_EQ(shape.capacity(), 6u);
}

} // namespace
} // namespace safering::test
