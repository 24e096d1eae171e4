#include <safering/tensor_name.hpp>

#include <set>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace safering {
namespace {

using namespace std::string_literals;
using namespace std::string_view_literals;

TEST(TensorName, IsTheTextThatItWasMadeOf) {
    EXPECT_TRUE(TensorName().empty());
    EXPECT_EQ(TensorName(), "");
    EXPECT_EQ(TensorName(""), TensorName());
    EXPECT_STREQ(TensorName().c_str(), "");
    const TensorName name = "layers.0.weight"s;
    EXPECT_EQ(name, "layers.0.weight");
    EXPECT_EQ(name.str(), "layers.0.weight");
    EXPECT_STREQ(name.c_str(), "layers.0.weight");
    EXPECT_EQ(TensorName("a\0b"sv).size(), 3u);
}

TEST(TensorName, ComparesByBytesWithAllThatIsText) {
    const TensorName a = "a", b = "b", also_a = "a"sv, high = "\xC3\xA9", prefix = "a."s;
    EXPECT_EQ(a, also_a);
    EXPECT_EQ("a"s, a);
    EXPECT_EQ(a, "a"sv);
    EXPECT_NE(a, "b");
    EXPECT_NE(a, prefix);
    EXPECT_LT(a, b);
    EXPECT_LT(a, prefix);
    EXPECT_LT(b, high); // not as signed characters
    EXPECT_GT("b"s, a);
    const std::set<TensorName, std::less<>> names{b, a, also_a};
    EXPECT_EQ(names.size(), 2u);
    EXPECT_TRUE(names.contains("b"sv));
}

TEST(TensorName, CopiesOutliveWhatTheyWereCopiedFrom) {
    TensorName kept, moved;
    {
        TensorName first = "a name that is not short at all, by no means";
        kept = first;
        kept = *&kept;
        moved = std::move(first);
        EXPECT_EQ(first, "");
    }
    EXPECT_EQ(kept, "a name that is not short at all, by no means");
    EXPECT_EQ(kept.data(), moved.data());
}

TEST(TensorNames, LieBesideEachOtherAndOutliveTheirMaker) {
    std::vector<TensorName> made;
    std::vector<std::string> expected;
    {
        TensorNames names;
        for (int i = 0; i < 50'000; ++i) {
            expected.push_back("model.layers." + std::to_string(i));
            made.push_back(names.add(expected.back()));
        }
        EXPECT_EQ(made[1].data(), made[0].data() + made[0].size() + 1);
        EXPECT_EQ(names.add(""), "");
        const std::string longer(100'000, 'x');
        EXPECT_EQ(names.add(longer), longer);
        expected.push_back("after the long one");
        made.push_back(names.add(expected.back()));
        TensorNames other = std::move(names);
        expected.push_back("by the other");
        made.push_back(other.add(expected.back()));
        expected.push_back("by the one that was moved from");
        made.push_back(names.add(expected.back()));
    }
    for (std::size_t i = 0; i < made.size(); ++i) {
        ASSERT_EQ(made[i], expected[i]);
        ASSERT_EQ(made[i].c_str()[made[i].size()], '\0');
    }
}

TEST(TensorNames, CopiesAreMadeAndDroppedOnAnyThread) {
    TensorNames names;
    const TensorName name = names.add("shared"), other = names.add("in the same text");
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t)
        threads.emplace_back([name, other] {
            for (int i = 0; i < 10'000; ++i) {
                TensorName copy = i % 2 == 0 ? name : other;
                const TensorName again = std::move(copy);
                ASSERT_EQ(again, i % 2 == 0 ? "shared" : "in the same text");
            }
        });
}

} // namespace
} // namespace safering
