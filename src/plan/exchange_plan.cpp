#include "plan/exchange_plan.hpp"

#include <algorithm>
#include <tuple>

#include "plan/box.hpp"
#include "plan/cell_owners.hpp"
#include "plan/request_planner.hpp"

namespace safering::plan {

namespace {

// What one rank has in one cell.
struct Touch {
    std::uint32_t file;
    std::uint32_t rank;
    std::uint64_t cell;
    std::uint64_t bytes;
    // What would go through the page cache, and in how many runs.
    std::uint64_t short_bytes;
    std::uint64_t short_runs;
};

// Nanoseconds of CPU, measured (2 ranks, rows of 1 and 8 KiB; virtio ext4): a short run through the page cache,
// a byte of it, and a byte that another rank's process takes.
constexpr double cached_run_ns = 1500, cached_byte_ns = 1.0, taken_byte_ns = 0.2;
// What one rank's part of a cell costs besides, at the taker.
constexpr double taken_part_ns = 5000;

class ExchangePlanner {
  public:
    ExchangePlanner(const std::vector<SavePlan>& plans, const Layout& layout,
                    const ExchangeOptions& options)
        : plans_(plans), layout_(layout), options_(options), load_(plans.size()) {}

    std::vector<std::optional<ExchangePlan>> run() {
        std::vector<std::optional<ExchangePlan>> out(plans_.size());
        if (options_.way == ExchangeWay::off || !find_hosts())
            return out;
        find_touches();
        choose_cells();
        regions_ = owners_.assign(std::move(load_));
        for (const OwnedCells& region : regions_)
            for (const std::uint32_t rank : owners_.ranks(region.ranks)) {
                if (!out[rank])
                    out[rank] = ExchangePlan{.way = options_.way};
                out[rank]->cells.push_back(
                    {region.file, region.owner, region.first_cell, region.last_cell});
            }
        hand_items(out);
        return out;
    }

  private:
    // False where no two ranks share one.
    bool find_hosts() {
        std::vector<std::string_view> endpoints;
        for (const SavePlan& plan : plans_)
            endpoints.push_back(plan.endpoint);
        host_ = number_hosts(endpoints);
        Ranks sorted = host_;
        std::ranges::sort(sorted);
        const auto none = std::ranges::lower_bound(sorted, no_host);
        return std::adjacent_find(sorted.begin(), none) != none;
    }

    ByteRange hull_of(std::size_t rank, std::size_t item, const FileBox& box) const {
        return box.hull().shifted(layout_.placements[rank][item].tensor_begin);
    }

    static FileBox box_of(const WriteItem& item) {
        auto box = FileBox::make(item.dtype, item.size, item.chunk.offsets, item.chunk.sizes);
        SAFERING_ASSERT(box.has_value()); // made when the files were laid out
        return std::move(*box);
    }

    void find_touches() {
        for (std::uint32_t rank = 0; rank < plans_.size(); ++rank)
            for (std::size_t i = 0; i < plans_[rank].items.size(); ++i) {
                const FileBox box = box_of(plans_[rank].items[i]);
                load_[rank] += box.bytes();
                touch_cells(rank, layout_.placements[rank][i], box);
            }
        std::ranges::sort(touches_, {}, [](const Touch& touch) {
            return std::tie(touch.file, touch.cell, touch.rank);
        });
    }

    void touch_cells(std::uint32_t rank, const ItemPlacement& placement, const FileBox& box) {
        const ByteRange hull = box.hull().shifted(placement.tensor_begin);
        if (hull.empty())
            return;
        for (std::uint64_t cell = hull.begin / options_.chunk_bytes;
             cell * options_.chunk_bytes < hull.end; ++cell) {
            const std::uint64_t begin = cell * options_.chunk_bytes;
            const ByteRange part = hull.clip({begin, begin + options_.chunk_bytes});
            if (box.contiguous() && part.size() == options_.chunk_bytes)
                continue; // nobody else is there
            std::uint64_t bytes = part.size(), run = part.size();
            if (!box.contiguous()) {
                run = box.run_bytes();
                bytes = box.bytes_before(part.end - placement.tensor_begin) -
                        box.bytes_before(part.begin - placement.tensor_begin);
            }
            if (bytes == 0)
                continue;
            const bool is_short = run < direct_run_bytes;
            touches_.push_back({placement.file, rank, cell, bytes, is_short ? bytes : 0,
                                is_short ? (bytes + run - 1) / run : 0});
        }
    }

    void choose_cells() {
        Ranks ranks;
        for (std::size_t begin = 0, end = 0; begin < touches_.size(); begin = end) {
            const auto [file, cell] = std::pair(touches_[begin].file, touches_[begin].cell);
            ranks.clear();
            for (;
                 end < touches_.size() && touches_[end].file == file && touches_[end].cell == cell;
                 ++end)
                if (ranks.empty() || ranks.back() != touches_[end].rank)
                    ranks.push_back(touches_[end].rank);
            const std::span<const Touch> all(&touches_[begin], end - begin);
            if (!on_one_host(ranks) || !worthwhile(all, ranks.size()))
                continue;
            std::uint64_t bytes = 0;
            for (const Touch& touch : all) {
                bytes += touch.bytes;
                load_[touch.rank] -= touch.bytes;
            }
            owners_.add(file, cell, ranks, bytes);
        }
        touches_ = {};
    }

    bool on_one_host(const Ranks& ranks) const {
        return ranks.size() > 1 && host_[ranks.front()] != no_host &&
               std::ranges::all_of(
                   ranks, [&](std::uint32_t rank) { return host_[rank] == host_[ranks.front()]; });
    }

    // Against the page cache; the owner is taken to have the average share of the cell.
    bool worthwhile(std::span<const Touch> touches, std::size_t ranks) const {
        double bytes = 0, cached = 0;
        for (const Touch& touch : touches) {
            bytes += static_cast<double>(touch.bytes);
            cached += cached_run_ns * static_cast<double>(touch.short_runs) +
                      cached_byte_ns * static_cast<double>(touch.short_bytes);
        }
        const double others = 1 - 1 / static_cast<double>(ranks);
        const double taken =
            taken_byte_ns * bytes * others + taken_part_ns * static_cast<double>(ranks - 1);
        return options_.way != ExchangeWay::automatic || taken < cached;
    }

    // Every item to the owners of its cells.
    void hand_items(std::vector<std::optional<ExchangePlan>>& out) const {
        for (std::uint32_t rank = 0; rank < plans_.size(); ++rank) {
            if (!out[rank])
                continue;
            Ranks takers;
            for (std::uint32_t i = 0; i < plans_[rank].items.size(); ++i)
                for (const std::uint32_t owner : owners_of(rank, i)) {
                    const WriteItem& item = plans_[rank].items[i];
                    out[owner]->items.push_back(
                        {rank, i, item.dtype, item.chunk, item.size, layout_.placements[rank][i]});
                    takers.push_back(owner);
                }
            std::ranges::sort(takers);
            takers.erase(std::ranges::unique(takers).begin(), takers.end());
            for (const std::uint32_t owner : takers) {
                out[rank]->takers.push_back({owner, plans_[owner].endpoint});
                out[owner]->sources.push_back({rank, plans_[rank].endpoint});
            }
        }
    }

    // Of the item's cells that other ranks write; each once.
    Ranks owners_of(std::uint32_t rank, std::size_t item) const {
        const FileBox box = box_of(plans_[rank].items[item]);
        const ByteRange hull = hull_of(rank, item, box);
        const std::uint32_t file = layout_.placements[rank][item].file;
        Ranks owners;
        if (hull.empty())
            return owners;
        const std::uint64_t first = hull.begin / options_.chunk_bytes;
        auto region = std::ranges::partition_point(regions_, [&](const OwnedCells& candidate) {
            return std::pair(candidate.file, candidate.last_cell) <= std::pair(file, first);
        });
        for (; region != regions_.end() && region->file == file &&
               region->first_cell * options_.chunk_bytes < hull.end;
             ++region) {
            const bool takes_part = std::ranges::binary_search(owners_.ranks(region->ranks), rank);
            const std::uint32_t owner = region->owner;
            if (takes_part && owner != rank && std::ranges::find(owners, owner) == owners.end())
                owners.push_back(owner);
        }
        return owners;
    }

    const std::vector<SavePlan>& plans_;
    const Layout& layout_;
    const ExchangeOptions options_;
    std::vector<std::uint32_t> host_; // of each rank
    std::vector<Touch> touches_;
    std::vector<std::uint64_t> load_; // bytes that each rank writes, without what is exchanged
    CellOwners owners_;
    std::vector<OwnedCells> regions_; // by (file, cell)
};

} // namespace

std::vector<std::optional<ExchangePlan>> plan_exchange(const std::vector<SavePlan>& plans,
                                                       const Layout& layout,
                                                       const ExchangeOptions& options) {
    return ExchangePlanner(plans, layout, options).run();
}

} // namespace safering::plan

namespace safering {

std::string_view name(ExchangeWay way) {
    switch (way) {
    case ExchangeWay::automatic: return "automatic";
    case ExchangeWay::off: return "off";
    case ExchangeWay::process_memory: return "process_memory";
    case ExchangeWay::shared_memory: return "shared_memory";
    }
    return "unknown";
}

} // namespace safering
