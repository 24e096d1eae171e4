// Cells that several ranks of one host touch, shared out among these. Pure.
//
// Neighbouring cells of the same ranks are given out in long runs, so that all ranks have about the same to move
// and few of what they hold has more than one owner.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string_view>
#include <vector>

namespace safering::plan {

using Ranks = std::vector<std::uint32_t>; // rising

inline constexpr std::uint32_t no_host = ~std::uint32_t{0};
/// Of each endpoint the number of its host; no_host for one without.
std::vector<std::uint32_t> number_hosts(std::span<const std::string_view> endpoints);

/// Cells [first_cell, last_cell) of one owner.
struct OwnedCells {
    std::uint32_t file = 0;
    std::uint32_t owner = 0;
    std::uint64_t first_cell = 0;
    std::uint64_t last_cell = 0;
    /// Who touches them: number of the set.
    std::uint32_t ranks = 0;
};

class CellOwners {
  public:
    /// In order of (file, cell), each once. `bytes`: what its owner has to move.
    void add(std::uint32_t file, std::uint64_t cell, const Ranks& ranks, std::uint64_t bytes);
    bool empty() const { return cells_.empty(); }
    const Ranks& ranks(std::uint32_t set) const { return sets_[set]; }
    /// `loads`: bytes that each rank moves besides. In order of (file, first_cell).
    std::vector<OwnedCells> assign(std::vector<std::uint64_t> loads);

  private:
    struct Cell {
        std::uint32_t file;
        std::uint32_t ranks; // number of its set
        std::uint64_t cell;
        std::uint64_t bytes;
    };

    void share_out(std::span<const Cell> cells);
    std::uint64_t common_level(std::span<const std::uint32_t> order, std::uint64_t bytes) const;
    void add_region(std::span<const Cell> cells, std::uint32_t owner);

    std::map<Ranks, std::uint32_t> numbers_;
    std::vector<Ranks> sets_;
    std::vector<Cell> cells_;
    std::vector<std::uint64_t> load_; // of each rank, so far
    std::vector<OwnedCells> regions_;
};

} // namespace safering::plan
