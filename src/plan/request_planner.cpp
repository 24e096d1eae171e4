#include "plan/request_planner.hpp"

#include <algorithm>
#include <limits>
#include <tuple>

#include <fmt/format.h>

#include "large_memory.hpp"

namespace safering::plan {

namespace {

// Rising by begin; the item breaks ties, so that one set of spans has one plan.
constexpr auto by_place = [](const auto& a, const auto& b) {
    return std::tie(a.range.begin, a.item) < std::tie(b.range.begin, b.item);
};

// Sorts most cheaply what is usually sorted already.
template <typename T>
void sort_by_place(std::vector<T>& items) {
    if (!std::is_sorted(items.begin(), items.end(), by_place))
        std::sort(items.begin(), items.end(), by_place);
}

std::vector<Segment> cut_at_cells(const std::vector<FileSpan>& spans, std::uint64_t chunk_bytes) {
    std::vector<Segment> segments;
    reserve_large(segments, spans.size());
    for (const FileSpan& span : spans) {
        SAFERING_ASSERT(span.range.begin <= span.range.end);
        SAFERING_ASSERT(span.range.end <= std::uint64_t{1} << 63); // no cell's end overflows
        for (std::uint64_t at = span.range.begin; at < span.range.end;) {
            const std::uint64_t next =
                std::min(span.range.end, round_down(at, chunk_bytes) + chunk_bytes);
            segments.push_back({{at, next}, span.item, span.strided});
            at = next;
        }
    }
    // Only spans that reach into each other's cells leave anything to do here.
    sort_by_place(segments);
    return segments;
}

// `spans` are sorted.
RequestPlan plan_cells(const std::vector<FileSpan>& spans, std::uint64_t chunk_bytes) {
    RequestPlan plan;
    plan.segments = cut_at_cells(spans, chunk_bytes);
    SAFERING_ASSERT(plan.segments.size() <= std::numeric_limits<std::uint32_t>::max());
    std::uint64_t cell_end = 0;
    for (std::size_t i = 0; i < plan.segments.size(); ++i) {
        const Segment& segment = plan.segments[i];
        if (segment.range.begin >= cell_end) {
            cell_end = round_down(segment.range.begin, chunk_bytes) + chunk_bytes;
            plan.requests.push_back({.range = {segment.range.begin, segment.range.begin},
                                     .first_segment = static_cast<std::uint32_t>(i)});
        }
        CellRequest& request = plan.requests.back();
        request.gaps |= segment.strided || segment.range.begin > request.range.end;
        request.range.end = std::max(request.range.end, segment.range.end);
        ++request.segment_count;
    }
    return plan;
}

} // namespace

RequestPlanner::RequestPlanner(std::uint64_t chunk_bytes) : chunk_bytes_(chunk_bytes) {
    SAFERING_ASSERT(chunk_bytes >= 4096 && (chunk_bytes & (chunk_bytes - 1)) == 0);
}

Result<RequestPlan> RequestPlanner::plan_writes(std::vector<FileSpan> spans) const {
    sort_by_place(spans);
    const FileSpan* last = nullptr;
    for (const FileSpan& span : spans) {
        if (span.strided || span.range.empty())
            continue;
        if (last != nullptr && last->range.overlaps(span.range)) {
            const ByteRange shared = last->range.clip(span.range);
            auto error = fail(Errc::plan_overlap, "plan writes",
                              fmt::format("items {} and {} of the plan have the same bytes",
                                          last->item, span.item));
            error.error().offset = shared.begin;
            error.error().length = shared.size();
            return error;
        }
        last = &span; // ends last of all so far, as none overlap
    }
    return plan_cells(spans, chunk_bytes_);
}

RequestPlan RequestPlanner::plan_reads(std::vector<FileSpan> spans) const {
    sort_by_place(spans);
    return plan_cells(spans, chunk_bytes_);
}

std::vector<Transfer> write_transfers(std::span<const ByteRange> runs, std::uint64_t block_bytes,
                                      std::uint64_t direct_min_bytes) {
    std::vector<Transfer> transfers;
    const auto add = [&](ByteRange range, bool direct) {
        if (!range.empty())
            transfers.push_back({range, direct});
    };
    for (std::size_t i = 0; i < runs.size();) {
        ByteRange run = runs[i++];
        SAFERING_ASSERT(i < 2 || runs[i - 2].end <= run.begin);
        while (i < runs.size() && runs[i].begin == run.end)
            run.end = runs[i++].end;
        const ByteRange blocks{round_up(run.begin, block_bytes), round_down(run.end, block_bytes)};
        if (run.size() >= direct_min_bytes && blocks.begin < blocks.end) {
            add({run.begin, blocks.begin}, false);
            add(blocks, true);
            add({blocks.end, run.end}, false);
        } else {
            add(run, false);
        }
    }
    return transfers;
}

std::vector<Transfer> read_transfers(std::span<const ByteRange> runs, std::uint64_t block_bytes,
                                     std::uint64_t gap_bytes) {
    std::vector<Transfer> transfers;
    std::uint64_t last_end = 0; // of the runs behind the last transfer, before rounding
    for (const ByteRange run : runs) {
        if (run.empty())
            continue;
        SAFERING_ASSERT(run.begin >= last_end);
        const ByteRange blocks{round_down(run.begin, block_bytes), round_up(run.end, block_bytes)};
        // Blocks that touch are one transfer even across a longer gap: nothing more is read.
        if (!transfers.empty() &&
            (run.begin - last_end <= gap_bytes || blocks.begin <= transfers.back().range.end))
            transfers.back().range.end = blocks.end;
        else
            transfers.push_back({blocks, true});
        last_end = run.end;
    }
    return transfers;
}

} // namespace safering::plan
