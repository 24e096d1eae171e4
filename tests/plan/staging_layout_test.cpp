#include "plan/staging_layout.hpp"

#include <algorithm>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

namespace safering::plan {
namespace {

constexpr std::uint64_t block = 4096;

// Some files with items one after the other, a few of which another rank has.
std::vector<StagedSpan> some_spans() {
    std::vector<StagedSpan> spans;
    const auto files = *rc::gen::inRange<std::uint32_t>(1, 4);
    for (std::uint32_t file = 0; file < files; ++file) {
        std::uint64_t at = *rc::gen::inRange<std::uint64_t>(0, 3) * block;
        const auto items = *rc::gen::inRange(0, 12);
        for (int i = 0; i < items; ++i) {
            const auto bytes = *rc::gen::inRange<std::uint64_t>(0, 3 * block);
            const bool strided = bytes > 16 && *rc::gen::inRange(0, 4) == 0;
            if (*rc::gen::inRange(0, 4) != 0)
                spans.push_back({file, {at, at + bytes}, strided ? bytes / 2 : bytes});
            at += bytes;
        }
    }
    for (std::size_t i = spans.size(); i > 1; --i)
        std::swap(spans[i - 1], spans[*rc::gen::inRange<std::size_t>(0, i)]);
    return spans;
}

RC_GTEST_PROP(StagingLayout, LiesAsTheFilesDo, ()) {
    const std::vector<StagedSpan> spans = some_spans();
    const StagingLayout layout = lay_out_staging(spans, block);
    RC_ASSERT(layout.offsets.size() == spans.size());
    std::vector<ByteRange> taken;
    std::uint64_t bytes = 0;
    for (std::size_t i = 0; i < spans.size(); ++i) {
        if (spans[i].bytes == 0)
            continue;
        const std::uint64_t begin = layout.offsets[i];
        taken.push_back({begin, begin + spans[i].bytes});
        bytes += spans[i].bytes;
        RC_ASSERT(taken.back().end <= layout.bytes);
        if (spans[i].bytes != spans[i].hull.size()) {
            RC_ASSERT(begin % 64 == 0u);
            continue;
        }
        RC_ASSERT(begin % block == spans[i].hull.begin % block);
        for (std::size_t j = 0; j < spans.size(); ++j)
            if (spans[j].file == spans[i].file && spans[j].bytes == spans[j].hull.size() &&
                spans[j].bytes != 0 && spans[j].hull.begin == spans[i].hull.end)
                RC_ASSERT(layout.offsets[j] == taken.back().end);
    }
    std::ranges::sort(taken);
    for (std::size_t i = 1; i < taken.size(); ++i)
        RC_ASSERT(taken[i - 1].end <= taken[i].begin);
    RC_ASSERT(layout.bytes <= bytes + 2 * block * spans.size());
}

TEST(StagingLayout, OfNothingIsNothing) {
    EXPECT_EQ(lay_out_staging({}, block).bytes, 0u);
    const StagedSpan empty{0, {8192, 8192}, 0};
    EXPECT_EQ(lay_out_staging(std::span(&empty, 1), block).bytes, 0u);
}

} // namespace
} // namespace safering::plan
