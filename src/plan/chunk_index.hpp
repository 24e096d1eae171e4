// The stored chunks of one tensor, so that those that touch a box are found without looking at all.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include <safering/plan.hpp>

namespace safering::plan {

class ChunkIndex {
  public:
    /// Borrows the chunks, which must have the rank of `size` and lie inside it.
    ChunkIndex(const Shape& size, std::span<const ChunkStorageMetadata> chunks);

    /// Calls f(index, common box) for every chunk that has elements in common with `box`, by rising
    /// offset along the dimension that is split most.
    template <typename F>
    void for_each_in(const ChunkStorageMetadata& box, F&& f) const;

  private:
    struct Entry {
        std::uint64_t begin;       // along dimension_
        std::uint64_t highest_end; // of this entry and those before it
        std::uint32_t chunk;
    };
    std::span<const ChunkStorageMetadata> chunks_;
    std::size_t dimension_ = 0;
    std::vector<Entry> entries_;
};

/// The elements that two boxes of one rank share; false where there are none.
bool intersect(const ChunkStorageMetadata& a, const ChunkStorageMetadata& b,
               ChunkStorageMetadata& common);

template <typename F>
void ChunkIndex::for_each_in(const ChunkStorageMetadata& box, F&& f) const {
    ChunkStorageMetadata common;
    const bool scalar = box.sizes.empty();
    const std::uint64_t begin = scalar ? 0 : box.offsets[dimension_];
    const std::uint64_t end = scalar ? 1 : begin + box.sizes[dimension_];
    auto at = std::partition_point(entries_.begin(), entries_.end(),
                                   [&](const Entry& entry) { return entry.highest_end <= begin; });
    for (; at != entries_.end() && at->begin < end; ++at)
        if (intersect(chunks_[at->chunk], box, common))
            f(at->chunk, common);
}

} // namespace safering::plan
