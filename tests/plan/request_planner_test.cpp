#include "plan/request_planner.hpp"

#include <map>
#include <random>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "oracle.hpp"

namespace safering::plan {

std::ostream& operator<<(std::ostream& out, const Transfer& transfer) {
    return out << transfer.range << (transfer.direct ? " direct" : " buffered");
}

namespace {

constexpr std::uint64_t chunk_bytes = 4096;

// Every byte of every span is in exactly one segment of its item; segments lie
// in cells; requests rise.
void check_plan(const std::vector<FileSpan>& spans, const RequestPlan& plan) {
    std::map<std::uint32_t, std::vector<ByteRange>> parts;
    std::uint32_t next_segment = 0;
    std::uint64_t last_end = 0;
    for (const CellRequest& request : plan.requests) {
        RC_ASSERT(request.first_segment == next_segment);
        RC_ASSERT(request.segment_count > 0u);
        next_segment += request.segment_count;
        RC_ASSERT(request.range.begin >= last_end);
        RC_ASSERT(request.range.begin < request.range.end);
        RC_ASSERT(request.range.begin / chunk_bytes == (request.range.end - 1) / chunk_bytes);
        if (last_end > 0)
            RC_ASSERT((last_end - 1) / chunk_bytes <
                      request.range.begin / chunk_bytes); // one request a cell
        last_end = request.range.end;
        std::uint64_t covered = request.range.begin, hull_end = request.range.begin;
        bool gaps = false;
        const Segment* before = nullptr;
        for (const Segment& segment : plan.segments_of(request)) {
            RC_ASSERT(!segment.range.empty());
            RC_ASSERT(request.range.contains(segment.range));
            if (before != nullptr)
                RC_ASSERT(std::tie(before->range.begin, before->item) <=
                          std::tie(segment.range.begin, segment.item));
            before = &segment;
            gaps |= segment.strided || segment.range.begin > covered;
            covered = std::max(covered, segment.range.end);
            hull_end = std::max(hull_end, segment.range.end);
            parts[segment.item].push_back(segment.range);
        }
        RC_ASSERT(request.gaps == gaps);
        RC_ASSERT(hull_end == request.range.end);
        RC_ASSERT(plan.segments_of(request).front().range.begin == request.range.begin);
    }
    RC_ASSERT(next_segment == plan.segments.size());
    for (const FileSpan& span : spans) {
        std::uint64_t at = span.range.begin;
        for (const ByteRange part : parts[span.item]) {
            RC_ASSERT(part.begin == at);
            at = part.end;
        }
        RC_ASSERT(at == span.range.end);
        parts.erase(span.item);
    }
    RC_ASSERT(parts.empty());
}

std::vector<FileSpan> any_spans() {
    const auto sizes =
        *rc::gen::container<std::vector<std::uint16_t>>(rc::gen::inRange<std::uint16_t>(0, 15000));
    std::vector<FileSpan> spans;
    for (const std::uint16_t size : sizes) {
        const std::uint64_t begin = *rc::gen::inRange<std::uint64_t>(0, 60000);
        spans.push_back({{begin, begin + size},
                         static_cast<std::uint32_t>(spans.size()),
                         *rc::gen::arbitrary<bool>()});
    }
    return spans;
}

RC_GTEST_PROP(RequestPlanner, ReadsHoldEveryByteOfEverySpanOnce, ()) {
    const auto spans = any_spans();
    check_plan(spans, RequestPlanner(chunk_bytes).plan_reads(spans));
}

RC_GTEST_PROP(RequestPlanner, WritesHoldEveryByteOnceOrOverlap, ()) {
    auto spans = any_spans();
    bool overlap = false;
    for (const FileSpan& a : spans)
        for (const FileSpan& b : spans)
            overlap |= a.item < b.item && !a.strided && !b.strided && !a.range.empty() &&
                       !b.range.empty() && a.range.overlaps(b.range);
    const auto plan = RequestPlanner(chunk_bytes).plan_writes(spans);
    RC_ASSERT(plan.has_value() == !overlap);
    if (plan)
        check_plan(spans, *plan);
    else
        RC_ASSERT(plan.error().code == Errc::plan_overlap);
}

RC_GTEST_PROP(RequestPlanner, DisjointWritesArePlanned, ()) {
    std::vector<FileSpan> spans;
    std::uint64_t at = 0;
    for (const auto& [gap, size] :
         *rc::gen::arbitrary<std::vector<std::pair<std::uint16_t, std::uint16_t>>>()) {
        at += gap % 3 == 0 ? gap % 9000 : 0;
        spans.push_back({{at, at + size % 20000}, static_cast<std::uint32_t>(spans.size()), false});
        at = spans.back().range.end;
    }
    std::shuffle(spans.begin(), spans.end(), std::mt19937(7));
    const auto plan = RequestPlanner(chunk_bytes).plan_writes(spans);
    RC_ASSERT(plan.has_value());
    check_plan(spans, *plan);
}

TEST(RequestPlanner, NeighboursShareARequest) {
    const auto plan = RequestPlanner(chunk_bytes)
                          .plan_writes({{{100, 200}, 1, false},
                                        {{200, 5000}, 0, false},
                                        {{5001, 5002}, 2, false},
                                        {{7, 7}, 3, false}});
    ASSERT_TRUE(plan.has_value());
    ASSERT_EQ(plan->requests.size(), 2u);
    EXPECT_EQ(plan->requests[0].range, (ByteRange{100, 4096}));
    EXPECT_FALSE(plan->requests[0].gaps);
    EXPECT_EQ(plan->requests[1].range, (ByteRange{4096, 5002}));
    EXPECT_TRUE(plan->requests[1].gaps);
    EXPECT_EQ(plan->segments_of(plan->requests[1]).size(), 2u);
    EXPECT_TRUE(RequestPlanner(chunk_bytes).plan_reads({}).requests.empty());
}

TEST(RequestPlanner, OverlapSaysWhere) {
    const auto plan =
        RequestPlanner(chunk_bytes).plan_writes({{{0, 100}, 4, false}, {{90, 120}, 2, false}});
    ASSERT_FALSE(plan.has_value());
    EXPECT_EQ(plan.error().code, Errc::plan_overlap);
    EXPECT_EQ(plan.error().offset, 90u);
    EXPECT_EQ(plan.error().length, 10u);
}

std::vector<ByteRange> any_runs() {
    std::vector<ByteRange> runs;
    std::uint64_t at = 0;
    for (const auto& [gap, size] :
         *rc::gen::arbitrary<std::vector<std::pair<std::uint16_t, std::uint16_t>>>()) {
        at += gap % 4 == 0 ? 0 : gap % 3000;
        runs.push_back({at, at + size % 3000});
        at = runs.back().end;
    }
    return runs;
}

RC_GTEST_PROP(WriteTransfers, TouchExactlyTheBytesOfTheRuns, ()) {
    const auto runs = any_runs();
    const std::uint64_t block = 512, direct_min = *rc::gen::inRange<std::uint64_t>(0, 3000);
    const auto transfers = write_transfers(runs, block, direct_min);
    std::vector<int> bytes(400'000);
    for (const ByteRange run : runs)
        for (std::uint64_t i = run.begin; i < run.end && i < bytes.size(); ++i)
            ++bytes[i];
    std::uint64_t last = 0;
    for (const Transfer& transfer : transfers) {
        RC_ASSERT(!transfer.range.empty());
        RC_ASSERT(transfer.range.begin >= last);
        last = transfer.range.end;
        if (transfer.direct) {
            RC_ASSERT(transfer.range.begin % block == 0u);
            RC_ASSERT(transfer.range.end % block == 0u);
        }
        for (std::uint64_t i = transfer.range.begin; i < transfer.range.end && i < bytes.size();
             ++i)
            --bytes[i];
    }
    RC_ASSERT(std::all_of(bytes.begin(), bytes.end(), [](int n) { return n == 0; }));
}

TEST(WriteTransfers, WholeBlocksOfLongRunsGoDirectly) {
    using List = std::vector<Transfer>;
    const auto plan = [](std::vector<ByteRange> runs, std::uint64_t direct_min) {
        return write_transfers(runs, 512, direct_min);
    };
    EXPECT_EQ(plan({{0, 1024}}, 1024), (List{{{0, 1024}, true}}));
    EXPECT_EQ(plan({{0, 512}, {512, 1024}}, 1024), (List{{{0, 1024}, true}}));
    EXPECT_EQ(plan({{0, 1024}}, 1025), (List{{{0, 1024}, false}}));
    EXPECT_EQ(plan({{100, 1100}}, 0),
              (List{{{100, 512}, false}, {{512, 1024}, true}, {{1024, 1100}, false}}));
    EXPECT_EQ(plan({{100, 1000}}, 0), (List{{{100, 1000}, false}}));
    EXPECT_EQ(plan({{5, 5}}, 0), List{});
}

RC_GTEST_PROP(ReadTransfers, CoverTheRunsInWholeBlocksWithoutOverlap, ()) {
    const auto runs = any_runs();
    const std::uint64_t block = 512, gap = *rc::gen::inRange<std::uint64_t>(0, 2000);
    const auto transfers = read_transfers(runs, block, gap);
    std::uint64_t last = 0, total = 0, needed = 0;
    for (const Transfer& transfer : transfers) {
        RC_ASSERT(transfer.direct);
        RC_ASSERT(transfer.range.begin % block == 0u);
        RC_ASSERT(transfer.range.end % block == 0u);
        RC_ASSERT(last == 0u || transfer.range.begin > last); // those that touch are one
        last = transfer.range.end;
        total += transfer.range.size();
    }
    std::uint64_t last_end = 0;
    for (const ByteRange run : runs) {
        if (run.empty())
            continue;
        RC_ASSERT(std::any_of(transfers.begin(), transfers.end(), [&](const Transfer& transfer) {
            return transfer.range.contains(run);
        }));
        needed += run.size() + 2 * block + std::min(gap, run.begin - last_end);
        last_end = run.end;
    }
    RC_ASSERT(total <= needed);
}

TEST(ReadTransfers, MergeAcrossSmallGaps) {
    using List = std::vector<Transfer>;
    const auto plan = [](std::vector<ByteRange> runs, std::uint64_t gap) {
        return read_transfers(runs, 512, gap);
    };
    EXPECT_EQ(plan({{10, 20}, {4000, 4010}}, 0), (List{{{0, 512}, true}, {{3584, 4096}, true}}));
    EXPECT_EQ(plan({{10, 20}, {4000, 4010}}, 3980), (List{{{0, 4096}, true}}));
    EXPECT_EQ(plan({{10, 20}, {4000, 4010}}, 3979), (List{{{0, 512}, true}, {{3584, 4096}, true}}));
    EXPECT_EQ(plan({{10, 20}, {500, 600}}, 0), (List{{{0, 1024}, true}}));
    EXPECT_EQ(plan({{10, 512}, {1000, 1010}}, 0), (List{{{0, 1024}, true}}));
}

} // namespace
} // namespace safering::plan
