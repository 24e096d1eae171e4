#include "plan/cell_owners.hpp"

#include <algorithm>
#include <utility>

#include "endpoint.hpp"

namespace safering::plan {

std::vector<std::uint32_t> number_hosts(std::span<const std::string_view> endpoints) {
    std::map<std::string_view, std::uint32_t> numbers;
    std::vector<std::uint32_t> hosts;
    for (const std::string_view endpoint : endpoints) {
        const std::string_view host = host_of(endpoint);
        hosts.push_back(
            host.empty()
                ? no_host
                : numbers.emplace(host, static_cast<std::uint32_t>(numbers.size())).first->second);
    }
    return hosts;
}

void CellOwners::add(std::uint32_t file, std::uint64_t cell, const Ranks& ranks,
                     std::uint64_t bytes) {
    const auto [set, inserted] = numbers_.emplace(ranks, static_cast<std::uint32_t>(sets_.size()));
    if (inserted)
        sets_.push_back(ranks);
    cells_.push_back({file, set->second, cell, bytes});
}

std::vector<OwnedCells> CellOwners::assign(std::vector<std::uint64_t> loads) {
    load_ = std::move(loads);
    for (std::size_t begin = 0, end = 0; begin < cells_.size(); begin = end) {
        while (end < cells_.size() && cells_[end].file == cells_[begin].file &&
               cells_[end].ranks == cells_[begin].ranks &&
               cells_[end].cell == cells_[begin].cell + (end - begin))
            ++end;
        share_out({&cells_[begin], end - begin});
    }
    return std::move(regions_);
}

// Neighbouring cells of one set of ranks, among these: each gets what it lacks to the level that all reach
// together, in one piece.
void CellOwners::share_out(std::span<const Cell> cells) {
    Ranks order = sets_[cells.front().ranks];
    std::ranges::stable_sort(order, {}, [&](std::uint32_t rank) { return load_[rank]; });
    std::uint64_t left = 0;
    for (const Cell& cell : cells)
        left += cell.bytes;
    std::size_t at = 0;
    for (std::size_t r = 0; r < order.size() && at < cells.size(); ++r) {
        const std::uint32_t rank = order[r];
        const std::size_t first = at;
        // Of those that are left, so that what rounding gives one the others do not lack at the end.
        const std::uint64_t level = common_level(std::span(order).subspan(r), left);
        // To the nearest cell; the last takes what is left.
        while (at < cells.size() &&
               (r + 1 == order.size() || load_[rank] + cells[at].bytes / 2 < level)) {
            left -= cells[at].bytes;
            load_[rank] += cells[at++].bytes;
        }
        if (at > first)
            add_region(cells.subspan(first, at - first), rank);
    }
}

// To which the loads of `order`, rising, can be raised with so many bytes.
std::uint64_t CellOwners::common_level(std::span<const std::uint32_t> order,
                                       std::uint64_t bytes) const {
    std::uint64_t sum = 0;
    for (std::size_t r = 0; r < order.size(); ++r) {
        sum += load_[order[r]];
        const std::uint64_t level = (sum + bytes) / (r + 1);
        if (r + 1 == order.size() || level <= load_[order[r + 1]])
            return level;
    }
    return 0;
}

void CellOwners::add_region(std::span<const Cell> cells, std::uint32_t owner) {
    const Cell& first = cells.front();
    if (!regions_.empty()) {
        OwnedCells& last = regions_.back();
        if (last.ranks == first.ranks && last.file == first.file && last.owner == owner &&
            last.last_cell == first.cell) {
            last.last_cell += cells.size();
            return;
        }
    }
    regions_.push_back({first.file, owner, first.cell, first.cell + cells.size(), first.ranks});
}

} // namespace safering::plan
