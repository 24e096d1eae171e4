#include "plan/staging_layout.hpp"

#include <algorithm>
#include <numeric>
#include <tuple>

#include <safering/error.hpp>

namespace safering::plan {

StagingLayout lay_out_staging(std::span<const StagedSpan> spans, std::uint64_t block_bytes) {
    constexpr std::uint64_t cache_line = 64;
    SAFERING_ASSERT(block_bytes % cache_line == 0);
    std::vector<std::uint32_t> order(spans.size());
    std::iota(order.begin(), order.end(), 0u);
    const auto place = [&](std::uint32_t item) {
        const StagedSpan& span = spans[item];
        return std::tuple(span.bytes != span.hull.size(), span.file, span.hull.begin, item);
    };
    std::ranges::sort(order, {}, place);
    StagingLayout layout{.offsets = std::vector<std::uint64_t>(spans.size()), .bytes = 0};
    std::uint64_t at = 0;
    const StagedSpan* before = nullptr;
    for (const std::uint32_t item : order) {
        const StagedSpan& span = spans[item];
        const bool one_run = span.bytes == span.hull.size();
        const bool follows = before != nullptr && one_run && before->file == span.file &&
                             before->hull.end == span.hull.begin;
        if (!one_run)
            at = round_up(at, cache_line);
        else if (!follows && span.bytes != 0)
            at = round_up(at, block_bytes) + span.hull.begin % block_bytes;
        layout.offsets[item] = at;
        at += span.bytes;
        if (span.bytes != 0)
            before = one_run ? &span : nullptr;
    }
    layout.bytes = at;
    return layout;
}

} // namespace safering::plan
