#include "text.hpp"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace safering::tools {

std::optional<std::uint64_t> parse_bytes(std::string_view text) {
    double number = 0;
    const auto [end, error] =
        std::from_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed);
    if (error != std::errc() || !std::isfinite(number) || number < 0)
        return std::nullopt;

    std::string suffix(end, text.data() + text.size());
    suffix.erase(0, std::min(suffix.find_first_not_of(' '), suffix.size()));
    std::ranges::transform(suffix, suffix.begin(), [](unsigned char c) { return std::tolower(c); });
    if (suffix.ends_with('b'))
        suffix.pop_back();
    double unit = 1;
    if (!suffix.empty()) {
        const std::size_t power = std::string_view("kmgt").find(suffix.front());
        const bool binary = suffix.size() == 2 && suffix.back() == 'i';
        if (power == std::string_view::npos || (suffix.size() != 1 && !binary))
            return std::nullopt;
        unit = std::pow(binary ? 1024 : 1000, static_cast<double>(power + 1));
    }
    const double bytes = std::round(number * unit);
    // Sizes of files are signed 64-bit numbers to the kernel.
    if (bytes >= std::ldexp(1.0, 63))
        return std::nullopt;
    return static_cast<std::uint64_t>(bytes);
}

std::string format_bytes(std::uint64_t bytes) {
    return plan::bytes_in_words(bytes);
}

std::string format_shape(const Shape& shape) {
    return fmt::format("[{}]", fmt::join(shape, ", "));
}

double gib_per_second(std::uint64_t bytes, std::chrono::duration<double> time) {
    constexpr double gib = 1024.0 * 1024 * 1024;
    return time.count() > 0 ? static_cast<double>(bytes) / gib / time.count() : 0;
}

} // namespace safering::tools
