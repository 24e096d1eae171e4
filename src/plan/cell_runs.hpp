// The bytes of a cell that its segments are, as runs.
#pragma once

#include <algorithm>
#include <vector>

#include "plan/box.hpp"
#include "plan/request_planner.hpp"

namespace safering::plan {

/// `box_of(item)` and `begin_of(item)`: of strided items the box in the stored tensor, and where that begins in the
/// file. Gaps of at most `gap_bytes` in a box may be told as if they were its bytes, for those who would read across
/// them: short runs are many. Rising.
template <typename BoxOf, typename BeginOf>
std::vector<ByteRange> cell_runs(const RequestPlan& plan, const CellRequest& request,
                                 std::uint64_t gap_bytes, BoxOf box_of, BeginOf begin_of) {
    std::vector<ByteRange> runs;
    for (const Segment& segment : plan.segments_of(request)) {
        if (!segment.strided) {
            runs.push_back(segment.range);
            continue;
        }
        const std::uint64_t begin = begin_of(segment.item);
        const FileBox& box = box_of(segment.item);
        const ByteRange window{segment.range.begin - begin, segment.range.end - begin};
        if (box.longest_gap() > gap_bytes)
            box.for_each_run(window, [&](ByteRange run) { runs.push_back(run.shifted(begin)); });
        else if (box.bytes_before(window.begin) < box.bytes_before(window.end))
            runs.push_back(segment.range);
    }
    std::ranges::sort(runs);
    return runs;
}

} // namespace safering::plan
