// Views of tensors in memory: what a save reads from and a load writes into.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <boost/container/small_vector.hpp>

#include <safering/dtype.hpp>

namespace safering {

/// Extents or offsets, outermost dimension first; empty for a scalar. In place up to rank 4, so that a
/// plan of a million items makes no million allocations.
using Shape = boost::container::small_vector<std::uint64_t, 4>;
/// In elements (not bytes), may be negative or zero, one a dimension.
using Strides = boost::container::small_vector<std::int64_t, 4>;

/// The strides of a dense row-major tensor.
SAFERING_API Strides contiguous_strides(const Shape& shape);

/// Memory that a save reads. Element (i, j, ...) lies at data + (i*strides[0] + j*strides[1] + ...) *
/// itemsize. Sub-byte dtypes must be contiguous.
struct TensorView {
    const std::byte* data = nullptr;
    Dtype dtype = Dtype::u8;
    Shape shape{};
    /// Empty means contiguous.
    Strides strides{};
    /// Keeps the memory alive until the last byte is written; may be null where the caller sees to it.
    std::shared_ptr<const void> owner{};
};

/// Memory that a load fills. The same conventions.
struct MutableTensorView {
    std::byte* data = nullptr;
    Dtype dtype = Dtype::u8;
    Shape shape{};
    Strides strides{};
    std::shared_ptr<void> owner{};
};

} // namespace safering
