#include "checkpoint/cell_taker.hpp"

#include <utility>

#include "io/trace.hpp"

namespace safering::checkpoint {

namespace {

constexpr std::size_t cells_a_message = 1024;

} // namespace

CellTaker::CellTaker(PeerGroup& group, const LoadExchange& plan, OnFailed on_failed)
    : group_(group), plan_(plan), on_failed_(std::move(on_failed)) {
    for (const SharedCells& cells : plan.cells)
        if (cells.owner != plan.rank && find(cells.owner) == nullptr)
            owners_.push_back({.rank = cells.owner});
}

CellTaker::Owner* CellTaker::find(std::uint32_t rank) {
    const auto found = std::ranges::find(owners_, rank, &Owner::rank);
    return found == owners_.end() ? nullptr : &*found;
}

bool CellTaker::needs(std::uint32_t rank) const {
    const auto found = std::ranges::find(owners_, rank, &Owner::rank);
    return found != owners_.end() && !found->done;
}

void CellTaker::begin(const std::vector<CellName>& wanted, OnCell on_cell) {
    on_cell_ = std::move(on_cell);
    auto cells = plan_.cells.begin();
    const SharedCells* last = nullptr;
    for (const CellName& name : wanted) {
        while (std::pair(cells->file, cells->last_cell) <= std::pair(name.file, name.cell))
            ++cells;
        Owner& owner = *find(cells->owner);
        owner.cells.push_back(name);
        owner.taken.push_back(false);
        ++owner.left;
        // A run of them lies in one of the plan's, as the owner knows these.
        if (std::exchange(last, &*cells) == &*cells && owner.wants.back().last_cell == name.cell)
            ++owner.wants.back().last_cell;
        else
            owner.wants.push_back({name.file, name.cell, name.cell + 1});
    }
}

void CellTaker::on_message(std::uint32_t rank, PeerMessage type,
                           std::span<const std::byte> message) {
    Owner* owner = find(rank);
    if (owner == nullptr || owner->done)
        return lost(rank, "it gives what this rank does not take");
    if (type == PeerMessage::here && !owner->told) {
        for (const std::uint64_t address : values_of<std::uint64_t>(message))
            owner->address = address;
        choose_way(*owner);
    } else if (type == PeerMessage::cell && owner->told) {
        auto parts = parts_of<PeerCell, ByteRange>(message);
        if (!parts)
            return lost(rank, "it said what makes no sense here");
        take(*owner, parts->first, std::move(parts->second));
    } else if (type == PeerMessage::all_given && owner->told && owner->left == 0) {
        owner->done = true;
    } else {
        lost(rank, "it said what makes no sense here");
    }
}

void CellTaker::on_permitted(std::uint32_t rank) {
    if (Owner* owner = find(rank); owner != nullptr && !owner->told)
        choose_way(*owner);
}

void CellTaker::choose_way(Owner& owner) {
    if (plan_.way == ExchangeWay::shared_memory || owner.left == 0)
        return tell(owner, PeerWay::slots);
    Error why;
    switch (group_.try_memory(owner.rank, owner.address, why)) {
    case PeerGroup::Access::granted: return tell(owner, PeerWay::in_place);
    case PeerGroup::Access::asked: return;
    case PeerGroup::Access::refused: break;
    }
    if (plan_.way == ExchangeWay::process_memory)
        return on_failed_(refused_memory(owner.rank, std::move(why)));
    report_.reason = why.message();
    tell(owner, PeerWay::slots);
}

void CellTaker::tell(Owner& owner, PeerWay way) {
    const std::span<const PeerCells> all(owner.wants);
    for (std::size_t begin = 0; begin < all.size(); begin += cells_a_message)
        group_.send(owner.rank,
                    peer_message<PeerCells>(
                        PeerMessage::take_cells,
                        all.subspan(begin, std::min(cells_a_message, all.size() - begin))));
    group_.send(owner.rank, peer_message(PeerMessage::takes, way));
    owner.told = true;
}

void CellTaker::take(Owner& owner, const PeerCell& cell, std::vector<ByteRange> ranges) {
    const CellName name{static_cast<std::uint32_t>(cell.name.file), cell.name.cell};
    const auto found = std::ranges::lower_bound(owner.cells, name);
    const auto place = static_cast<std::size_t>(found - owner.cells.begin());
    if (found == owner.cells.end() || *found != name || owner.taken[place])
        return lost(owner.rank, "it gives what this rank does not take");
    CellImage image{.begin = cell.image_begin, .ranges = std::move(ranges)};
    if (cell.way == PeerWay::in_place) {
        image.process = group_.process(owner.rank);
        image.address = cell.address;
    } else {
        const SharedSegment* slots = group_.slots_of(owner.rank);
        const bool fits = slots != nullptr && cell.slot < slots->size() / plan_.chunk_bytes &&
                          std::ranges::all_of(
                              image.ranges,
                              [&](ByteRange range) {
                                  return image.begin <= range.begin && range.begin <= range.end &&
                                         range.end - image.begin <= plan_.chunk_bytes;
                              });
        if (!fits)
            return lost(owner.rank, "it said what makes no sense here");
        image.data = slots->data() + cell.slot * plan_.chunk_bytes;
    }
    const auto bytes = [&] {
        const trace::Span span("take from another rank");
        return on_cell_(name, image);
    }();
    if (!bytes) {
        Error error = bytes.error();
        error.operation = rank_operation(owner.rank) + ": " + error.operation;
        return on_failed_(std::move(error));
    }
    (image.data == nullptr ? report_.process_memory_bytes : report_.shared_memory_bytes) += *bytes;
    owner.taken[place] = true;
    --owner.left;
    group_.send(owner.rank,
                peer_message(PeerMessage::cell_taken, PeerCellName{name.file, name.cell}));
}

void CellTaker::lost(std::uint32_t rank, const char* why) {
    on_failed_({.code = Errc::io_peer_lost, .operation = rank_operation(rank), .detail = why});
}

} // namespace safering::checkpoint
