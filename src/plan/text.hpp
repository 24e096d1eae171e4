// Shapes and boxes in words, for the details of errors.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include <safering/plan.hpp>

namespace safering::plan {

/// "[2, 3]"
inline std::string in_words(std::span<const std::uint64_t> numbers) {
    std::string out = "[";
    for (const std::uint64_t number : numbers) {
        if (out.size() > 1)
            out += ", ";
        out += std::to_string(number);
    }
    return out + "]";
}
inline std::string in_words(const Shape& shape) {
    return in_words(std::span(shape.data(), shape.size()));
}
/// "[2, 3] at [0, 6]"
inline std::string in_words(const ChunkStorageMetadata& box) {
    return in_words(box.sizes) + " at " + in_words(box.offsets);
}

} // namespace safering::plan
