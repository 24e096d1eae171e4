// JSON as most programs write it, read without a copy: strings have no escapes and numbers are unsigned. For the
// long way round, when a text turns out to be of another form, ask a real parser: what this one takes, that one
// takes too, with the same meaning.
#pragma once

#include <charconv>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace safering {

/// How many bytes at the start of `text` stand for themselves in a JSON string: up to the first quote,
/// backslash or control character.
inline std::size_t plain_length(std::string_view text) {
    constexpr std::uint64_t ones = 0x0101010101010101, high_bits = 0x80 * ones;
    const auto has_zero = [](std::uint64_t word) { return (word - ones) & ~word & high_bits; };
    std::size_t at = 0;
    for (std::uint64_t word = 0; text.size() - at >= sizeof word; at += sizeof word) {
        std::memcpy(&word, text.data() + at, sizeof word);
        const std::uint64_t control = (word - 0x20 * ones) & ~word & high_bits;
        if ((control | has_zero(word ^ '"' * ones) | has_zero(word ^ '\\' * ones)) != 0)
            break;
    }
    while (at < text.size() && static_cast<unsigned char>(text[at]) >= 0x20 && text[at] != '"' &&
           text[at] != '\\')
        ++at;
    return at;
}

/// Each function skips white space, takes what it names and says whether it was there; where it was not, the
/// text is not plain, and nothing more should be taken. `text` must be valid UTF-8.
class PlainJson {
  public:
    explicit PlainJson(std::string_view text) : rest_(text) {}

    bool take(char punctuation) {
        if (!sees(punctuation))
            return false;
        rest_.remove_prefix(1);
        return true;
    }
    /// A view of the text.
    bool string(std::string_view& out) {
        if (!take('"'))
            return false;
        out = rest_.substr(0, plain_length(rest_));
        rest_.remove_prefix(out.size());
        if (!rest_.starts_with('"'))
            return false;
        rest_.remove_prefix(1);
        return true;
    }
    bool string(std::string_view expected, char behind) {
        std::string_view found;
        return string(found) && found == expected && take(behind);
    }
    bool number(std::uint64_t& out) {
        skip_space();
        const char* first = rest_.data();
        const auto [end, error] = std::from_chars(first, first + rest_.size(), out);
        const auto digits = static_cast<std::size_t>(end - first);
        // "01" is no JSON; "1.5" and "1e3" go on behind what was read, where nobody expects it.
        if (error != std::errc() || (*first == '0' && digits > 1))
            return false;
        rest_.remove_prefix(digits);
        return true;
    }
    /// Calls `element` for each element of a list or member of an object; it says whether it could read it.
    template <typename Element>
    bool each(char open, char close, Element&& element) {
        if (!take(open))
            return false;
        if (take(close))
            return true;
        do {
            if (!element())
                return false;
        } while (take(','));
        return take(close);
    }
    bool sees(char punctuation) {
        skip_space();
        return rest_.starts_with(punctuation);
    }
    bool at_end() {
        skip_space();
        return rest_.empty();
    }

  private:
    void skip_space() {
        while (!rest_.empty() &&
               (rest_[0] == ' ' || rest_[0] == '\n' || rest_[0] == '\r' || rest_[0] == '\t'))
            rest_.remove_prefix(1);
    }

    std::string_view rest_;
};

} // namespace safering
