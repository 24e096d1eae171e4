// Views of tensors in memory: what a save reads from and a load writes into.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include <safering/dtype.hpp>
#include <safering/shape.hpp>

namespace safering {

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
