#include "terminal.hpp"

#include <algorithm>
#include <cstdlib>

#include <sys/ioctl.h>
#include <unistd.h>

namespace safering::tools {

namespace {

bool continues(char byte) {
    return (static_cast<unsigned char>(byte) & 0xc0) == 0x80;
}

// Where the code point begins that has so many before it.
std::size_t place_of(std::string_view text, std::size_t code_point) {
    std::size_t at = 0;
    for (; at < text.size(); ++at)
        if (!continues(text[at]) && code_point-- == 0)
            break;
    return at;
}

std::string_view environment(const char* name) {
    const char* value = std::getenv(name); // NOLINT(concurrency-mt-unsafe): nothing sets any here
    return value == nullptr ? std::string_view() : value;
}

} // namespace

Terminal standard_output() {
    Terminal out;
    if (!isatty(STDOUT_FILENO))
        return out;
    out.colour = environment("NO_COLOR").empty() && environment("TERM") != "dumb";
    winsize size{};
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col != 0)
        out.width = size.ws_col;
    return out;
}

std::string Terminal::bold(std::string_view text) const {
    return colour ? "\x1b[1m" + std::string(text) + "\x1b[0m" : std::string(text);
}

std::string Terminal::faint(std::string_view text) const {
    return colour ? "\x1b[2m" + std::string(text) + "\x1b[0m" : std::string(text);
}

std::size_t columns(std::string_view text) {
    return static_cast<std::size_t>(
        std::ranges::count_if(text, [](char byte) { return !continues(byte); }));
}

std::string shortened(std::string_view text, std::size_t most_columns) {
    const std::size_t width = columns(text);
    if (width <= most_columns)
        return std::string(text);
    if (most_columns == 0)
        return {};
    const std::size_t kept = most_columns - 1;
    const std::size_t head = kept / 2;
    std::string out(text.substr(0, place_of(text, head)));
    out += "…";
    out += text.substr(place_of(text, width - (kept - head)));
    return out;
}

} // namespace safering::tools
