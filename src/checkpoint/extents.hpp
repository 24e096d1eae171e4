// The digests of a stored file, asked by place: which pieces of which saved extents lie in a range.
#pragma once

#include <vector>

#include "checkpoint/stored_checkpoint.hpp"
#include "plan/box.hpp"

namespace safering::checkpoint {

/// The part of one saved extent that lies in one cell: what one digest covers.
struct DigestPiece {
    /// Hull of the piece, absolute.
    ByteRange range;
    std::uint64_t digest = 0;
    std::size_t tensor = 0;
    /// The extent's box; nothing where it is its hull.
    std::optional<plan::FileBox> box;
};

/// Pieces inside the cell of `chunk_bytes` that holds `range`, those that touch it, by rising begin.
/// O(log tensors + extents of those in the range). Empty for a file without digests.
std::vector<DigestPiece> pieces_in(const StoredFile& file, ByteRange range,
                                   std::uint64_t chunk_bytes);

/// How many bytes the piece's digest covers.
std::uint64_t bytes_of(const StoredFile& file, const DigestPiece& piece);

/// Whether the piece's bytes, in an image that starts at file offset `image_begin`, have its digest.
bool matches(const StoredFile& file, const DigestPiece& piece, const std::byte* image,
             std::uint64_t image_begin);

} // namespace safering::checkpoint
