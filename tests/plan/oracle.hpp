// Element-by-element truths that the tests of boxes and copies compare with. Slow and obvious.
#pragma once

#include <cstdint>
#include <functional>
#include <numeric>
#include <ostream>
#include <vector>

#include <safering/byte_range.hpp>
#include <safering/tensor.hpp>

namespace safering {

inline std::ostream& operator<<(std::ostream& out, ByteRange range) {
    return out << '[' << range.begin << ',' << range.end << ')';
}

namespace plan::oracle {

/// All index tuples of a box of `sizes`, in row-major order.
inline void for_each_index(const Shape& sizes, const std::function<void(const Shape&)>& f) {
    for (const std::uint64_t size : sizes)
        if (size == 0)
            return;
    Shape index(sizes.size(), 0);
    for (;;) {
        f(index);
        std::size_t d = sizes.size();
        for (;;) {
            if (d == 0)
                return;
            --d;
            if (++index[d] < sizes[d])
                break;
            index[d] = 0;
        }
    }
}

struct Element {
    std::uint64_t file;  // byte in the stored tensor
    std::int64_t memory; // byte relative to the box's first element in memory
};

/// The box's elements in file order.
inline std::vector<Element> elements(std::uint64_t itemsize, const Shape& stored,
                                     const Shape& offsets, const Shape& sizes,
                                     const Strides& strides) {
    std::vector<Element> out;
    for_each_index(sizes, [&](const Shape& index) {
        std::uint64_t file = 0;
        std::int64_t memory = 0;
        for (std::size_t d = 0; d < stored.size(); ++d) {
            file = file * stored[d] + offsets[d] + index[d];
            memory += static_cast<std::int64_t>(index[d]) * strides[d];
        }
        out.push_back({file * itemsize, memory * static_cast<std::int64_t>(itemsize)});
    });
    return out;
}

/// All boxes (offsets, sizes) of a shape, sizes from `smallest`.
inline void for_each_box(const Shape& shape, std::uint64_t smallest,
                         const std::function<void(const Shape&, const Shape&)>& f) {
    Shape limits;
    for (const std::uint64_t size : shape) {
        limits.push_back(size + 1);
        limits.push_back(size + 1);
    }
    const std::size_t rank = shape.size();
    for_each_index(limits, [&](const Shape& pairs) {
        Shape offsets(rank, 0), sizes(rank, 0);
        for (std::size_t d = 0; d < rank; ++d) {
            offsets[d] = pairs[2 * d];
            sizes[d] = pairs[2 * d + 1];
            if (sizes[d] < smallest || offsets[d] + sizes[d] > shape[d])
                return;
        }
        f(offsets, sizes);
    });
}

/// Dense strides of `sizes` with the dimensions in memory in the order `order` (outermost first),
/// each dimension padded by `pad` elements; bit d of `negative` turns dimension d around. `first`
/// is the element of the memory that is the box's (0, 0, ...), `elements` the memory's size.
struct MemoryLayout {
    Strides strides;
    std::int64_t first = 0;
    std::int64_t elements = 1;
};
inline MemoryLayout memory_layout(const Shape& sizes, const std::vector<std::size_t>& order,
                                  unsigned negative, std::int64_t pad) {
    MemoryLayout layout;
    layout.strides.resize(sizes.size());
    for (std::size_t k = order.size(); k-- > 0;) {
        const std::size_t d = order[k];
        const auto size = static_cast<std::int64_t>(sizes[d]);
        layout.strides[d] = layout.elements;
        if ((negative >> d & 1) != 0) {
            layout.strides[d] = -layout.elements;
            layout.first += layout.elements * (size - 1);
        }
        layout.elements *= size + pad;
    }
    return layout;
}

} // namespace plan::oracle
} // namespace safering
