// UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing past U+10FFFF.
#pragma once

#include <cstddef>
#include <string_view>

namespace safering {

/// Length of the valid sequence at the start of `text` (not empty), 0 where there is none.
std::size_t utf8_length(std::string_view text);

/// Offset of the first byte that does not begin a valid sequence; npos where all is valid.
std::size_t find_invalid_utf8(std::string_view text);

} // namespace safering
