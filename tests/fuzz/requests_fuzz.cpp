// Any spans of a file: the requests for them keep what request_planner.hpp promises, and so do their transfers.
#include <algorithm>

#include "input.hpp"
#include "plan/request_planner.hpp"

using namespace safering;
using namespace safering::plan;

namespace {

constexpr std::uint64_t block_bytes = 4096;

void check_plan(const RequestPlan& plan, const std::vector<FileSpan>& spans, std::uint64_t chunk) {
    std::uint64_t at = 0;
    std::vector<std::uint64_t> covered(spans.size(), 0);
    for (const CellRequest& request : plan.requests) {
        SAFERING_ASSERT(!request.range.empty() && request.range.begin >= at);
        SAFERING_ASSERT(request.range.begin / chunk == (request.range.end - 1) / chunk);
        at = request.range.end;
        std::vector<ByteRange> runs;
        for (const Segment& segment : plan.segments_of(request)) {
            SAFERING_ASSERT(request.range.contains(segment.range) && !segment.range.empty());
            SAFERING_ASSERT(spans[segment.item].range.contains(segment.range));
            covered[segment.item] += segment.range.size();
            if (runs.empty() || segment.range.begin > runs.back().end)
                runs.push_back(segment.range);
            else
                runs.back().end = std::max(runs.back().end, segment.range.end);
        }
        std::uint64_t written = 0;
        for (const Transfer& transfer : write_transfers(runs, block_bytes, direct_run_bytes)) {
            SAFERING_ASSERT(std::ranges::any_of(
                runs, [&](ByteRange run) { return run.contains(transfer.range); }));
            SAFERING_ASSERT(!transfer.direct || (transfer.range.begin % block_bytes == 0 &&
                                                 transfer.range.end % block_bytes == 0));
            written += transfer.range.size();
        }
        std::uint64_t wanted = 0;
        for (const ByteRange run : runs)
            wanted += run.size();
        SAFERING_ASSERT(written == wanted);
        std::uint64_t read_to = 0;
        const auto reads = read_transfers(runs, block_bytes, 2 * block_bytes);
        for (const Transfer& transfer : reads) {
            SAFERING_ASSERT(transfer.range.begin >= read_to &&
                            transfer.range.begin % block_bytes == 0);
            read_to = transfer.range.end;
        }
        for (const ByteRange run : runs)
            SAFERING_ASSERT(std::ranges::any_of(
                reads, [&](const Transfer& transfer) { return transfer.range.contains(run); }));
    }
    for (std::size_t i = 0; i < spans.size(); ++i)
        SAFERING_ASSERT(covered[i] == spans[i].range.size());
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    test::Input input(data, size);
    const std::uint64_t chunk = block_bytes << input.below(6);
    std::vector<FileSpan> spans;
    while (!input.spent() && spans.size() < 64) {
        const std::uint64_t begin = input.below(1 << 18);
        spans.push_back({{begin, begin + input.below(1 << 17)},
                         static_cast<std::uint32_t>(spans.size()),
                         input.below(4) == 0});
    }
    const RequestPlanner planner(chunk);
    check_plan(planner.plan_reads(spans), spans, chunk);
    const auto writes = planner.plan_writes(spans);
    if (writes)
        check_plan(*writes, spans, chunk);
    else
        SAFERING_ASSERT(writes.error().code == Errc::plan_overlap);
    return 0;
}
