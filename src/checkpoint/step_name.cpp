#include "checkpoint/step_name.hpp"

#include <charconv>

#include <fmt/format.h>

#include "checkpoint/attempt.hpp"

namespace safering::checkpoint {

std::optional<StepName> parse_step_name(std::string_view name) {
    // 18 digits are always below 2^63, which other languages' integers hold too.
    constexpr std::size_t most_digits = 18;
    const std::size_t separator = name.find_last_not_of("0123456789");
    if (separator == std::string_view::npos || separator == 0 || name.front() == '.' ||
        (name[separator] != '-' && name[separator] != '_') || !is_plain_component(name))
        return std::nullopt;
    const std::string_view digits = name.substr(separator + 1);
    if (digits.empty() || digits.size() > most_digits)
        return std::nullopt;
    StepName out{.prefix = std::string(name.substr(0, separator))};
    std::from_chars(digits.data(), digits.data() + digits.size(), out.step);
    return out;
}

std::string hidden_name(std::string_view target, std::string_view id, std::string_view suffix) {
    return fmt::format(".{}.{}.{}", target, id, suffix);
}

std::optional<HiddenName> parse_hidden_name(std::string_view name, std::string_view suffix) {
    constexpr std::size_t id_digits = 32;
    const std::size_t tail = 1 + id_digits + 1 + suffix.size();
    if (name.size() < 1 + 1 + tail)
        return std::nullopt;
    const HiddenName out{std::string(name.substr(1, name.size() - 1 - tail)),
                         std::string(name.substr(name.size() - tail + 1, id_digits))};
    if (!is_attempt_id(out.id) || name != hidden_name(out.target, out.id, suffix))
        return std::nullopt;
    return out;
}

std::optional<std::string> parse_pointer(std::string_view text) {
    if (text.ends_with('\n'))
        text.remove_suffix(1);
    if (!parse_step_name(text))
        return std::nullopt;
    return std::string(text);
}

} // namespace safering::checkpoint
