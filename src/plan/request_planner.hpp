// The RequestPlanner: byte ranges of one file -> requests, one a cell of chunk_bytes that is touched. Pure.
//
// The file is divided into cells, [k * chunk_bytes, (k+1) * chunk_bytes). All that a rank moves in one cell
// is one request with one buffer, and the buffer is an image of the file: a byte at file offset f lies at
// buffer offset f - round_down(range.begin, block_bytes). So neighbouring tensors coalesce, direct
// transfers are aligned without thought, and a digest of an item's bytes in a cell needs one buffer only.
//
// Invariants: requests rise and do not overlap; every byte of every span is in exactly one segment; a
// segment lies in one cell; O(n log n) in spans.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <safering/byte_range.hpp>
#include <safering/error.hpp>

namespace safering::plan {

/// The bytes of one item in one file: from its first to its last. Absolute file offsets.
struct FileSpan {
    ByteRange range;
    std::uint32_t item = 0;
    /// The item is runs with gaps inside the range (an inner shard); spans may then interleave.
    bool strided = false;
};

/// A part of an item's span inside one cell.
struct Segment {
    ByteRange range;
    std::uint32_t item = 0;
    bool strided = false;
};

/// All segments of one cell.
struct CellRequest {
    /// Hull of the segments.
    ByteRange range;
    std::uint32_t first_segment = 0;
    std::uint32_t segment_count = 0;
    /// Segments leave gaps inside the range, or may: a strided one has gaps between its runs.
    bool gaps = false;
};

struct RequestPlan {
    std::vector<CellRequest> requests;
    /// In order of (begin, item) inside a request.
    std::vector<Segment> segments;

    std::span<const Segment> segments_of(const CellRequest& request) const {
        return {segments.data() + request.first_segment, request.segment_count};
    }
};

class RequestPlanner {
  public:
    /// `chunk_bytes` a power of two, a multiple of 4096.
    explicit RequestPlanner(std::uint64_t chunk_bytes);
    /// Empty spans are dropped. Errors: plan_overlap where two spans that are not strided share bytes (for
    /// writes; reads may).
    Result<RequestPlan> plan_writes(std::vector<FileSpan> spans) const;
    RequestPlan plan_reads(std::vector<FileSpan> spans) const;

  private:
    std::uint64_t chunk_bytes_;
};

/// One transfer of a request, absolute file offsets.
struct Transfer {
    ByteRange range;
    bool direct = false;

    friend bool operator==(const Transfer&, const Transfer&) = default;
};

/// Below this a run goes through the page cache: a device takes about as long for one small direct write as
/// the copy and writeback of so many bytes.
inline constexpr std::uint64_t direct_run_bytes = std::uint64_t{64} << 10;

/// Cuts rising, disjoint runs (adjacent ones are joined) into transfers that write these bytes and no
/// other: whole blocks of a run of at least `direct_min_bytes` go out directly; its ragged ends, and shorter
/// runs, through the page cache. A rank never rounds outward: a block that it shares with another rank's
/// bytes would be lost.
std::vector<Transfer> write_transfers(std::span<const ByteRange> runs, std::uint64_t block_bytes,
                                      std::uint64_t direct_min_bytes);

/// What to read for rising, disjoint runs: neighbours with a gap of at most `gap_bytes` become one, each is
/// rounded out to whole blocks, and none overlaps another. `direct` on all.
std::vector<Transfer> read_transfers(std::span<const ByteRange> runs, std::uint64_t block_bytes,
                                     std::uint64_t gap_bytes);

} // namespace safering::plan
