// Where a rank's items lie in the memory that a save copies them to: as in the files, so that they can be written
// from there. Pure.
//
// Items that follow each other in a file follow each other in memory, and a byte at file offset f lies at an
// address that is f modulo block_bytes. An item that is no one run of its file (an inner shard) lies densely, on a
// line of the cache. No two share a byte; what is lost is less than a block a run.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <safering/byte_range.hpp>

namespace safering::plan {

struct StagedSpan {
    std::uint32_t file = 0;
    /// Of the item's bytes in the file, from the first to the last.
    ByteRange hull;
    /// Of the item; as many as the hull's where it is one run.
    std::uint64_t bytes = 0;
};

struct StagingLayout {
    /// Parallel to the spans. For memory that begins at a multiple of block_bytes.
    std::vector<std::uint64_t> offsets;
    std::uint64_t bytes = 0;
};

/// `block_bytes` a power of two. O(n log n).
StagingLayout lay_out_staging(std::span<const StagedSpan> spans, std::uint64_t block_bytes);

} // namespace safering::plan
