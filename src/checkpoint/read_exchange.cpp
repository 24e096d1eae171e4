#include "checkpoint/read_exchange.hpp"

#include <algorithm>
#include <bit>
#include <utility>

#include "checkpoint/load_offer.hpp"
#include "checkpoint/perform.hpp"

namespace safering::checkpoint {

namespace {

std::unexpected<Error> bad(const char* detail) {
    return fail(Errc::plan_bad_bytes, "read data in exchange with ranks of this host", detail);
}

// Without this rank.
std::vector<ExchangePeer> partners_of(const LoadExchange& plan) {
    std::vector<ExchangePeer> partners = plan.peers;
    std::erase_if(partners, [&](const ExchangePeer& peer) { return peer.rank == plan.rank; });
    return partners;
}

// What the rest relies on.
Result<void> check(const LoadExchange& plan, const std::string& endpoint) {
    if (plan.chunk_bytes < block_bytes || plan.chunk_bytes > most_exchanged_chunk_bytes ||
        !std::has_single_bit(plan.chunk_bytes))
        return bad("the plan's chunk_bytes are none");
    const auto is_peer = [&](std::uint32_t rank) {
        return std::ranges::find(plan.peers, rank, &ExchangePeer::rank) != plan.peers.end();
    };
    const auto own = std::ranges::find(plan.peers, plan.rank, &ExchangePeer::rank);
    if (own == plan.peers.end() || own->endpoint != endpoint)
        return bad("the plan was made with another reactor, and that is where the others look for "
                   "this rank: load with a reader on the one that planned, or plan again");
    const SharedCells* last = nullptr;
    for (const SharedCells& cells : plan.cells) {
        if (cells.first_cell >= cells.last_cell ||
            (last != nullptr &&
             std::pair(cells.file, cells.first_cell) < std::pair(last->file, last->last_cell)))
            return bad("the plan's cells are not in order");
        if (cells.owner == plan.rank ? !std::ranges::all_of(cells.takers, is_peer) ||
                                           std::ranges::count(cells.takers, plan.rank) != 0 ||
                                           !std::ranges::is_sorted(cells.takers)
                                     : !is_peer(cells.owner))
            return bad("the plan exchanges with ranks that are not among its partners");
        last = &cells;
    }
    for (std::size_t i = 1; i < plan.reads.size(); ++i)
        if (std::pair(plan.reads[i].file, plan.reads[i].range.begin) <
            std::pair(plan.reads[i - 1].file, plan.reads[i - 1].range.end))
            return bad("what the plan reads is not in order");
    return {};
}

bool is_for_taker(PeerMessage type) {
    return type == PeerMessage::here || type == PeerMessage::cell || type == PeerMessage::all_given;
}

} // namespace

Result<std::unique_ptr<ReadExchange>> ReadExchange::make(Reactor& reactor, LoadExchange plan) {
    if (auto checked = check(plan, reactor.endpoint()); !checked)
        return std::unexpected(std::move(checked.error()));
    auto group = PeerGroup::make(reactor, plan.id, plan.rank, partners_of(plan));
    if (!group)
        return std::unexpected(std::move(group.error()));
    return std::unique_ptr<ReadExchange>(new ReadExchange(std::move(*group), std::move(plan)));
}

void ReadExchange::decline(Reactor& reactor, const LoadExchange& plan, const std::string& why) {
    PeerGroup::decline(reactor, plan.id, plan.rank, {&plan.peers}, why);
}

ReadExchange::ReadExchange(std::unique_ptr<PeerGroup> group, LoadExchange plan)
    : plan_(std::move(plan)), group_(std::move(group)),
      giver_(*group_, plan_, [this](Error error) { fail(std::move(error)); }),
      taker_(*group_, plan_, [this](Error error) { fail(std::move(error)); }) {}

void ReadExchange::begin(Handlers handlers, const std::vector<CellName>& wanted) {
    handlers_ = std::move(handlers);
    open_ = true;
    taker_.begin(wanted, [this](const CellName& name, const CellImage& image) {
        return handlers_.on_cell(name, image);
    });
    group_->begin(
        {.on_message = [this](std::uint32_t rank,
                              std::span<const std::byte> message) { on_message(rank, message); },
         .on_permitted =
             [this](std::uint32_t rank) {
                 taker_.on_permitted(rank);
                 tell_progress();
             },
         .on_lost =
             [this](std::uint32_t rank, Error error) {
                 if (giver_.needs(rank) || taker_.needs(rank))
                     fail(std::move(error));
             },
         .on_failed = [this](Error error) { fail(std::move(error)); }});
    giver_.begin();
    tell_progress();
}

void ReadExchange::on_message(std::uint32_t rank, std::span<const std::byte> message) {
    if (!open_)
        return;
    const PeerMessage type = type_of(message).value_or(PeerMessage::failed);
    if (is_for_taker(type))
        taker_.on_message(rank, type, message);
    else
        giver_.on_message(rank, type, message);
    tell_progress();
}

void ReadExchange::tell_progress() {
    if (open_ && giver_.ready() && taker_.ready() && !std::exchange(ready_, true))
        handlers_.on_ready();
    if (open_ && ready_ && giver_.done() && taker_.done() && !std::exchange(done_, true))
        handlers_.on_done();
}

std::optional<std::uint32_t> ReadExchange::owner_of(const CellName& name) const {
    const auto cells = std::ranges::partition_point(plan_.cells, [&](const SharedCells& one) {
        return std::pair(one.file, one.last_cell) <= std::pair(name.file, name.cell);
    });
    if (cells == plan_.cells.end() || cells->file != name.file || cells->first_cell > name.cell)
        return std::nullopt;
    return cells->owner;
}

std::vector<ByteRange> ReadExchange::reads_of(const CellName& name) const {
    const ByteRange cell{name.cell * plan_.chunk_bytes, (name.cell + 1) * plan_.chunk_bytes};
    std::vector<ByteRange> reads;
    auto read = std::ranges::partition_point(plan_.reads, [&](const FileRange& one) {
        return std::pair(one.file, one.range.end) <= std::pair(name.file, cell.begin);
    });
    for (; read != plan_.reads.end() && read->file == name.file && read->range.begin < cell.end;
         ++read)
        reads.push_back(read->range.clip(cell));
    return reads;
}

void ReadExchange::fail(Error error) {
    if (std::exchange(open_, false))
        handlers_.on_failed(std::move(error));
}

void ReadExchange::give_up(const std::string& why) {
    group_->give_up(why);
    end();
}

void ReadExchange::end() {
    open_ = false;
    handlers_ = {};
    group_->end();
    giver_.end();
}

} // namespace safering::checkpoint
