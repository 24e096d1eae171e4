// Shapes, boxes, ranks and sizes in words, for errors and reports.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <fmt/format.h>

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

/// "1 file", "2 files"
inline std::string counted(std::uint64_t number, std::string_view thing) {
    return fmt::format("{} {}{}", number, thing, number == 1 ? "" : "s");
}

/// "rank 3", "ranks 0-2, 5": numbers that rise.
inline std::string ranks_in_words(std::span<const std::uint32_t> ranks) {
    std::string out = ranks.size() == 1 ? "rank " : "ranks ";
    for (std::size_t first = 0, last = 0; first < ranks.size(); first = ++last) {
        while (last + 1 < ranks.size() && ranks[last + 1] == ranks[last] + 1)
            ++last;
        out += fmt::format("{}{}", first == 0 ? "" : ", ", ranks[first]);
        if (last != first)
            out += fmt::format("-{}", ranks[last]);
    }
    return out;
}

/// "86.7 MiB", and "12 B" below one KiB.
inline std::string bytes_in_words(std::uint64_t bytes) {
    constexpr std::array units{"KiB", "MiB", "GiB", "TiB", "PiB"};
    if (bytes < 1024)
        return fmt::format("{} B", bytes);
    double number = static_cast<double>(bytes) / 1024;
    std::size_t unit = 0;
    for (; number >= 1024 && unit + 1 < units.size(); ++unit)
        number /= 1024;
    return fmt::format("{:.1f} {}", number, units[unit]);
}

} // namespace safering::plan
