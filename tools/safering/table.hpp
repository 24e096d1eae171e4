// Rows of cells under headings, as wide as the terminal allows.
#pragma once

#include <string>
#include <vector>

#include "terminal.hpp"

namespace safering::tools {

class Table {
  public:
    enum class Align : std::uint8_t { left, right };
    struct Column {
        std::string heading;
        Align align = Align::left;
        /// Whether its cells may be shortened where a line would not fit.
        bool may_shrink = false;
    };

    explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

    /// One cell a column; those left out are empty.
    void add(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
    bool empty() const { return rows_.empty(); }
    /// Lines that end without blanks, the first with the headings. Columns without a cell are left out.
    std::string text(const Terminal& terminal) const;

  private:
    std::vector<std::size_t> widths(std::size_t limit) const;

    std::vector<Column> columns_;
    std::vector<std::vector<std::string>> rows_;
};

} // namespace safering::tools
