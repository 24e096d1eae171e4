#include "plan/load_exchange_plan.hpp"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "plan/cell_owners.hpp"

namespace safering::plan {

namespace {

// Nanoseconds, measured (2 ranks, column slices; virtio NVMe): the disk's of a byte, which all ranks of a host wait
// for, and a rank's own of a byte that it takes from another process, and of telling and taking one part of a cell.
constexpr double disk_byte_ns = 0.3, taken_byte_ns = 0.1, taken_part_ns = 40000;

// Ranks that may exchange.
class Group {
  public:
    Group(const std::vector<const LoadOffer*>& offers, Ranks ranks,
          const LoadExchangeOptions& options)
        : offers_(offers), ranks_(std::move(ranks)), options_(options),
          chunk_bytes_(offers[ranks_.front()]->chunk_bytes), loads_(offers.size()) {}

    void plan(std::vector<std::optional<LoadExchange>>& out) {
        find_touches();
        choose_cells();
        auto read = unions_.begin();
        for (const OwnedCells& owned : owners_.assign(std::move(loads_))) {
            hand_out(owned, out);
            const ByteRange bytes{owned.first_cell * chunk_bytes_, owned.last_cell * chunk_bytes_};
            for (; read != unions_.end() &&
                   std::pair(read->file, read->range.begin) < std::pair(owned.file, bytes.end);
                 ++read)
                add_read(out[owned.owner]->reads, *read);
        }
        for (const std::uint32_t rank : ranks_)
            if (out[rank])
                add_peers(*out[rank]);
    }

  private:
    // What one rank would read of one cell, or a part of that.
    struct Touch {
        std::uint32_t file;
        std::uint32_t rank;
        std::uint64_t cell;
        ByteRange range;
    };

    void find_touches() {
        for (const std::uint32_t rank : ranks_)
            for (const auto& [file, range] : offers_[rank]->ranges) {
                loads_[rank] += range.size();
                for (std::uint64_t at = range.begin; at < range.end;) {
                    const std::uint64_t cell = at / chunk_bytes_;
                    const std::uint64_t end = std::min(range.end, (cell + 1) * chunk_bytes_);
                    touches_.push_back({file, rank, cell, {at, end}});
                    at = end;
                }
            }
        std::ranges::sort(touches_, {}, [](const Touch& touch) {
            return std::tie(touch.file, touch.cell, touch.range.begin, touch.rank);
        });
    }

    void choose_cells() {
        for (std::size_t begin = 0, end = 0; begin < touches_.size(); begin = end) {
            const Touch& first = touches_[begin];
            while (end < touches_.size() && touches_[end].file == first.file &&
                   touches_[end].cell == first.cell)
                ++end;
            choose({&touches_[begin], end - begin});
        }
        touches_ = {};
    }

    // All of one cell, by begin.
    void choose(std::span<const Touch> touches) {
        Ranks ranks;
        std::uint64_t read = 0, together = 0;
        const std::size_t unions = unions_.size();
        for (const Touch& touch : touches) {
            ranks.push_back(touch.rank);
            read += touch.range.size();
            if (unions_.size() > unions && touch.range.begin <= unions_.back().range.end)
                unions_.back().range.end = std::max(unions_.back().range.end, touch.range.end);
            else
                unions_.push_back({touch.file, touch.range});
        }
        for (std::size_t u = unions; u < unions_.size(); ++u)
            together += unions_[u].range.size();
        std::ranges::sort(ranks);
        const auto same = std::ranges::unique(ranks);
        ranks.erase(same.begin(), same.end());
        if (!worthwhile(ranks.size(), read, together)) {
            unions_.resize(unions);
            return;
        }
        for (const Touch& touch : touches)
            loads_[touch.rank] -= touch.range.size();
        owners_.add(touches.front().file, touches.front().cell, ranks, together);
    }

    // The owner is taken to have the average share of what is wanted.
    bool worthwhile(std::size_t ranks, std::uint64_t read, std::uint64_t together) const {
        if (ranks == 1 || read == together)
            return false;
        const double parts = static_cast<double>(ranks - 1);
        const double taken = static_cast<double>(read) * parts / static_cast<double>(ranks);
        return options_.way != ExchangeWay::automatic ||
               taken_byte_ns * taken + taken_part_ns * parts <
                   disk_byte_ns * static_cast<double>(read - together);
    }

    // To everybody who wants them.
    void hand_out(const OwnedCells& owned, std::vector<std::optional<LoadExchange>>& out) const {
        for (const std::uint32_t rank : owners_.ranks(owned.ranks)) {
            if (!out[rank])
                out[rank] = LoadExchange{.id = options_.id + '.' + offers_[rank]->checkpoint,
                                         .rank = rank,
                                         .way = options_.way,
                                         .chunk_bytes = chunk_bytes_};
            SharedCells& cells = out[rank]->cells.emplace_back(
                SharedCells{owned.file, owned.owner, owned.first_cell, owned.last_cell, {}});
            if (rank == owned.owner)
                std::ranges::remove_copy(owners_.ranks(owned.ranks),
                                         std::back_inserter(cells.takers), rank);
        }
    }

    static void add_read(std::vector<FileRange>& reads, const FileRange& read) {
        if (!reads.empty() && reads.back().file == read.file &&
            reads.back().range.end == read.range.begin)
            reads.back().range.end = read.range.end;
        else
            reads.push_back(read);
    }

    void add_peers(LoadExchange& exchange) const {
        Ranks peers{exchange.rank};
        for (const SharedCells& cells : exchange.cells) {
            peers.insert(peers.end(), cells.takers.begin(), cells.takers.end());
            if (cells.owner != exchange.rank)
                peers.push_back(cells.owner);
        }
        std::ranges::sort(peers);
        const auto same = std::ranges::unique(peers);
        peers.erase(same.begin(), same.end());
        for (const std::uint32_t peer : peers)
            exchange.peers.push_back({peer, offers_[peer]->endpoint});
    }

    const std::vector<const LoadOffer*>& offers_;
    const Ranks ranks_;
    const LoadExchangeOptions& options_;
    const std::uint64_t chunk_bytes_;
    std::vector<std::uint64_t> loads_; // bytes that each rank reads, without what is exchanged
    std::vector<Touch> touches_;
    std::vector<FileRange> unions_; // of the cells that are exchanged
    CellOwners owners_;
};

} // namespace

std::string_view checkpoint_of(const LoadExchange& exchange) {
    const std::string_view id = exchange.id;
    const std::size_t dot = id.find('.');
    return dot == std::string_view::npos ? std::string_view() : id.substr(dot + 1);
}

std::vector<std::optional<LoadExchange>>
plan_load_exchange(const std::vector<const LoadOffer*>& offers,
                   const LoadExchangeOptions& options) {
    std::vector<std::optional<LoadExchange>> out(offers.size());
    if (options.way == ExchangeWay::off)
        return out;
    std::vector<std::string_view> endpoints;
    for (const LoadOffer* offer : offers)
        endpoints.push_back(offer == nullptr ? std::string_view() : offer->endpoint);
    const std::vector<std::uint32_t> hosts = number_hosts(endpoints);
    std::map<std::tuple<std::uint32_t, std::string_view, std::uint64_t>, Ranks> groups;
    for (std::uint32_t rank = 0; rank < offers.size(); ++rank)
        if (hosts[rank] != no_host)
            groups[{hosts[rank], offers[rank]->checkpoint, offers[rank]->chunk_bytes}].push_back(
                rank);
    for (auto& [of, ranks] : groups)
        if (ranks.size() > 1)
            Group(offers, std::move(ranks), options).plan(out);
    return out;
}

} // namespace safering::plan
