#include "table.hpp"

#include <algorithm>
#include <numeric>

namespace safering::tools {

namespace {

constexpr std::size_t gap = 2;
constexpr std::size_t least_width = 12; // of a column that is shortened

} // namespace

std::vector<std::size_t> Table::widths(std::size_t limit) const {
    std::vector<std::size_t> widths(columns_.size(), 0);
    for (const auto& row : rows_)
        for (std::size_t c = 0; c < row.size(); ++c)
            widths[c] = std::max(widths[c], columns(row[c]));
    std::size_t used = 0;
    for (std::size_t c = 0; c < widths.size(); ++c) {
        if (widths[c] != 0) {
            widths[c] = std::max(widths[c], columns(columns_[c].heading));
            used += widths[c] + gap;
        }
    }
    used -= std::min(used, gap);
    // The widest first, so that short ones stay whole.
    while (used > limit) {
        std::size_t widest = columns_.size();
        for (std::size_t c = 0; c < columns_.size(); ++c)
            if (columns_[c].may_shrink && widths[c] > least_width &&
                (widest == columns_.size() || widths[c] > widths[widest]))
                widest = c;
        if (widest == columns_.size())
            break;
        --widths[widest];
        --used;
    }
    return widths;
}

std::string Table::text(const Terminal& terminal) const {
    const std::vector<std::size_t> width = widths(terminal.width);
    const auto line = [&](const auto& cell_of) {
        std::string out, blanks;
        for (std::size_t c = 0; c < columns_.size(); ++c) {
            if (width[c] == 0)
                continue;
            const std::string cell = shortened(cell_of(c), width[c]);
            const std::size_t fill = width[c] - columns(cell);
            if (columns_[c].align == Align::right)
                blanks.append(fill, ' ');
            if (!cell.empty()) {
                out += blanks + cell;
                blanks.clear();
            }
            blanks.append((columns_[c].align == Align::left ? fill : 0) + gap, ' ');
        }
        return out;
    };
    std::string out =
        terminal.bold(line([&](std::size_t c) { return columns_[c].heading; })) + "\n";
    for (const auto& row : rows_)
        out += line([&](std::size_t c) { return c < row.size() ? row[c] : std::string(); }) + "\n";
    return out;
}

} // namespace safering::tools
