// A half-open range of bytes of a file or of a tensor.
#pragma once

#include <algorithm>
#include <compare>
#include <cstdint>

namespace safering {

/// Bytes [begin, end). Invariant kept by every producer: begin <= end.
struct ByteRange {
    std::uint64_t begin = 0;
    std::uint64_t end = 0;

    constexpr std::uint64_t size() const { return end - begin; }
    constexpr bool empty() const { return begin == end; }
    constexpr bool contains(ByteRange other) const {
        return begin <= other.begin && other.end <= end;
    }
    constexpr bool overlaps(ByteRange other) const {
        return begin < other.end && other.begin < end;
    }
    /// The common part; empty (at the later begin) where there is none.
    constexpr ByteRange clip(ByteRange other) const {
        const std::uint64_t first = std::max(begin, other.begin);
        return {first, std::max(first, std::min(end, other.end))};
    }
    constexpr ByteRange shifted(std::uint64_t by) const { return {begin + by, end + by}; }

    friend constexpr auto operator<=>(ByteRange, ByteRange) = default;
};

/// `unit` must be a power of two.
constexpr std::uint64_t round_down(std::uint64_t value, std::uint64_t unit) {
    return value & ~(unit - 1);
}
/// `unit` must be a power of two; the caller keeps value <= 2^64 - unit.
constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t unit) {
    return round_down(value + unit - 1, unit);
}

} // namespace safering
