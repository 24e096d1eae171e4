#include "checkpoint/extents.hpp"

#include <algorithm>

namespace safering::checkpoint {

std::vector<DigestPiece> pieces_in(const StoredFile& file, ByteRange range,
                                   std::uint64_t chunk_bytes) {
    std::vector<DigestPiece> pieces;
    if (file.extents.empty() || range.empty())
        return pieces;
    const std::uint64_t cell_begin = round_down(range.begin, chunk_bytes);
    const ByteRange cell{cell_begin, cell_begin + chunk_bytes};
    const auto& tensors = file.header.tensors;
    // Tensors are in offset order and disjoint, so that their ends rise too.
    const auto first = std::ranges::partition_point(tensors, [&](const auto& tensor) {
        return tensor.data.end + file.header.data_begin <= range.begin;
    });
    for (auto t = static_cast<std::size_t>(first - tensors.begin());
         t < tensors.size() && file.tensor_range(t).begin < range.end; ++t) {
        for (std::size_t e = file.extents.first(t); e < file.extents.first(t + 1); ++e) {
            const ByteRange hull = file.hulls[e];
            const ByteRange piece = hull.clip(cell);
            if (piece.empty() || !piece.overlaps(range))
                continue;
            const FileExtents::Extent extent = file.extents.at(e);
            std::optional<plan::FileBox> box;
            if (extent.box != nullptr) {
                auto made = plan::FileBox::make(tensors[t].dtype, tensors[t].shape,
                                                extent.box->offsets, extent.box->sizes);
                SAFERING_ASSERT(made.has_value()); // checked when the checkpoint was opened
                if (!made->contiguous())
                    box = std::move(*made);
            }
            pieces.push_back(
                {.range = piece,
                 .digest = extent.digests[cell.begin / chunk_bytes - hull.begin / chunk_bytes],
                 .tensor = t,
                 .box = std::move(box)});
        }
    }
    std::ranges::sort(pieces, {}, &DigestPiece::range);
    return pieces;
}

namespace {

// The piece's hull, relative to its tensor, as boxes want it.
ByteRange window_of(const StoredFile& file, const DigestPiece& piece) {
    const std::uint64_t begin = file.tensor_range(piece.tensor).begin;
    return {piece.range.begin - begin, piece.range.end - begin};
}

} // namespace

std::uint64_t bytes_of(const StoredFile& file, const DigestPiece& piece) {
    if (!piece.box)
        return piece.range.size();
    std::uint64_t bytes = 0;
    piece.box->for_each_run(window_of(file, piece), [&](ByteRange run) { bytes += run.size(); });
    return bytes;
}

bool matches(const StoredFile& file, const DigestPiece& piece, const std::byte* image,
             std::uint64_t image_begin) {
    const std::byte* bytes = image + (piece.range.begin - image_begin);
    if (!piece.box)
        return plan::digest_of({bytes, piece.range.size()}) == piece.digest;
    return plan::digest_of_image(*piece.box, bytes, window_of(file, piece)) == piece.digest;
}

} // namespace safering::checkpoint
