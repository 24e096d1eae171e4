#include "plan/chunk_index.hpp"

namespace safering::plan {

ChunkIndex::ChunkIndex(const Shape& size, std::span<const ChunkStorageMetadata> chunks)
    : chunks_(chunks) {
    // The dimension with the most distinct offsets tells chunks apart best.
    std::size_t most = 0;
    std::vector<std::uint64_t> offsets;
    for (std::size_t d = 0; d < size.size() && chunks.size() > 1; ++d) {
        offsets.clear();
        for (const ChunkStorageMetadata& chunk : chunks)
            offsets.push_back(chunk.offsets[d]);
        std::sort(offsets.begin(), offsets.end());
        const auto distinct =
            static_cast<std::size_t>(std::unique(offsets.begin(), offsets.end()) - offsets.begin());
        if (distinct > most) {
            most = distinct;
            dimension_ = d;
        }
    }
    for (std::size_t c = 0; c < chunks.size(); ++c) {
        const auto chunk = static_cast<std::uint32_t>(c);
        if (size.empty())
            entries_.push_back({0, 1, chunk});
        else
            entries_.push_back({chunks[c].offsets[dimension_],
                                chunks[c].offsets[dimension_] + chunks[c].sizes[dimension_],
                                chunk});
    }
    std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
        return a.begin != b.begin ? a.begin < b.begin : a.chunk < b.chunk;
    });
    for (std::size_t e = 1; e < entries_.size(); ++e)
        entries_[e].highest_end = std::max(entries_[e].highest_end, entries_[e - 1].highest_end);
}

bool intersect(const ChunkStorageMetadata& a, const ChunkStorageMetadata& b,
               ChunkStorageMetadata& common) {
    const std::size_t rank = a.sizes.size();
    common.offsets.resize(rank);
    common.sizes.resize(rank);
    for (std::size_t d = 0; d < rank; ++d) {
        const std::uint64_t begin = std::max(a.offsets[d], b.offsets[d]);
        const std::uint64_t end = std::min(a.offsets[d] + a.sizes[d], b.offsets[d] + b.sizes[d]);
        if (begin >= end)
            return false;
        common.offsets[d] = begin;
        common.sizes[d] = end - begin;
    }
    return true;
}

} // namespace safering::plan
