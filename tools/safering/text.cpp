#include "text.hpp"

#include <algorithm>
#include <array>
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
    constexpr std::array units{"KiB", "MiB", "GiB", "TiB", "PiB"};
    if (bytes < 1024)
        return fmt::format("{} B", bytes);
    double number = static_cast<double>(bytes) / 1024;
    std::size_t unit = 0;
    for (; number >= 1024 && unit + 1 < units.size(); ++unit)
        number /= 1024;
    return fmt::format("{:.1f} {}", number, units[unit]);
}

std::string format_shape(const Shape& shape) {
    return fmt::format("[{}]", fmt::join(shape, ", "));
}

std::string format_work(const WorkReport& work) {
    std::string out =
        fmt::format("plan {:.3f} s, transfer {:.3f} s", work.plan_seconds, work.transfer_seconds);
    if (work.stalls != 0)
        out += fmt::format(" (stalled {:.3f} s in {})", work.stall_seconds, work.stalls);
    out += fmt::format(", copy {:.3f} s", work.copy_seconds);
    if (work.verify_seconds > 0)
        out += fmt::format(", verify {:.3f} s", work.verify_seconds);
    out += fmt::format(
        ", flush {:.3f} s; {} requests of {} pieces, {} in flight, {} direct, {} cached",
        work.flush_seconds, work.requests, work.pieces, work.most_in_flight,
        format_bytes(work.direct_bytes), format_bytes(work.cached_bytes));
    if (work.retries != 0)
        out += fmt::format(", {} retries", work.retries);
    return out;
}

double gib_per_second(std::uint64_t bytes, std::chrono::duration<double> time) {
    constexpr double gib = 1024.0 * 1024 * 1024;
    return time.count() > 0 ? static_cast<double>(bytes) / gib / time.count() : 0;
}

} // namespace safering::tools
