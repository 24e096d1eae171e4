// What one rank reads of a checkpoint's files for its plan, said before it reads: for the coordinator to compare with
// other ranks'.
#pragma once

#include <string>
#include <vector>

#include <safering/plan.hpp>
#include <safering/storage_reader.hpp>

#include "checkpoint/stored_checkpoint.hpp"

namespace safering::checkpoint {

/// A gap that is cheaper to read than to skip: what a disk moves in the time of one small read.
inline constexpr std::uint64_t read_gap_bytes = std::uint64_t{128} << 10;
/// And one that is not worth to be told apart: runs between such gaps may be a million.
inline constexpr std::uint64_t read_slack_bytes = std::uint64_t{16} << 10;

/// Ranks hand on cells of at most so much: what an owner has read of one is told in one message.
inline constexpr std::uint64_t most_exchanged_chunk_bytes = std::uint64_t{64} << 20;

/// What must be the same for one rank to read for another: the files, and how they are checked.
std::string identity_of(const StoredCheckpoint& checkpoint, Verification verification);

/// Cells that a load works in: those of the digests where it checks them. Errors: checkpoint_over_budget where a
/// buffer of `buffer_bytes` does not hold one.
Result<std::uint64_t> read_chunk_bytes(const StoredCheckpoint& checkpoint,
                                       Verification verification, std::uint64_t buffer_bytes);

/// Runs of a cell, those of its segments, joined where they overlap or touch. With Verification::all they are widened
/// to whole saved extents.
std::vector<ByteRange> read_runs(const StoredFile& file, std::vector<ByteRange> runs,
                                 ByteRange cell, Verification verification,
                                 std::uint64_t chunk_bytes);

/// Errors: those of boxes that lie outside of what is stored.
Result<LoadOffer> make_load_offer(const StoredCheckpoint& checkpoint, const LoadPlan& plan,
                                  Verification verification, std::uint64_t chunk_bytes,
                                  std::string endpoint);

} // namespace safering::checkpoint
