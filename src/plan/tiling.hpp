// Whether boxes tile a tensor, and if not, where: O(n log n) in the boxes for a given number of
// dimensions that are split. Exact where the n boxes and the d split dimensions make at most 2^22
// corners, (n + 1) * 2^d, as up to two million chunks of a matrix do. Beyond that it is exact for
// boxes that tile, while others are taken for a tiling with a chance of d in 2^61, over random
// numbers that the boxes' author cannot know (see tiling.cpp).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include <safering/plan.hpp>

namespace safering::plan {

struct TilingFault {
    /// plan_shape_mismatch, plan_out_of_bounds, plan_overflow, plan_hole or plan_overlap.
    Errc code;
    /// Chunks at fault: none for a hole or an overflow, `first` alone for one that does not fit,
    /// both for an overlap.
    std::size_t first = 0;
    std::size_t second = 0;
    /// An element that is uncovered, or covered twice.
    Shape element{};
};

/// Nothing where the chunks tile [0, size). Chunks without elements may lie anywhere inside.
std::optional<TilingFault> find_tiling_fault(const Shape& size,
                                             std::span<const ChunkStorageMetadata> chunks);

/// The fault for an error's detail; `describe(index)` names a chunk.
std::string in_words(const TilingFault& fault, const Shape& size,
                     const std::function<std::string(std::size_t)>& describe);

/// Number of elements; nothing where it passes 2^63, even where another dimension is 0.
std::optional<std::uint64_t> element_count(const Shape& shape);

} // namespace safering::plan
