#include <safering/tensor.hpp>

#include <algorithm>

namespace safering {

Strides contiguous_strides(const Shape& shape) {
    Strides strides(shape.size());
    // Unsigned, because the dimensions of an empty tensor may multiply past 2^63; nobody follows
    // its strides. A zero dimension counts as one, as in PyTorch.
    std::uint64_t stride = 1;
    for (std::size_t i = shape.size(); i-- > 0;) {
        strides[i] = static_cast<std::int64_t>(stride);
        stride *= std::max<std::uint64_t>(shape[i], 1);
    }
    return strides;
}

} // namespace safering
