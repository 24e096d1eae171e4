// Standard output as it is: a terminal of some width that may show colours, or a pipe.
#pragma once

#include <cstddef>
#include <limits>
#include <string>
#include <string_view>

namespace safering::tools {

struct Terminal {
    /// Columns that a line may take; no limit in a pipe.
    std::size_t width = std::numeric_limits<std::size_t>::max();
    /// On a terminal other than "dumb", unless NO_COLOR is set (no-color.org).
    bool colour = false;

    std::string bold(std::string_view text) const;
    std::string faint(std::string_view text) const;
};

Terminal standard_output();

/// Columns that a text of UTF-8 takes, one for each code point.
std::size_t columns(std::string_view text);
/// At most so many columns, with "…" for what is left out of its middle.
std::string shortened(std::string_view text, std::size_t most_columns);

} // namespace safering::tools
