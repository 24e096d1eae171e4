#include "checkpoint/cell_giver.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace safering::checkpoint {

namespace {

// Cells that takers copy out of slots at a time, while more wait in their buffers.
constexpr std::uint32_t slot_count = 4;

// What takers read when they try this process's memory.
const std::byte probe{};

bool contains(const PeerCells& cells, const CellName& name) {
    return cells.file == name.file && cells.first_cell <= name.cell && name.cell < cells.last_cell;
}

} // namespace

CellGiver::CellGiver(PeerGroup& group, const LoadExchange& plan, OnFailed on_failed)
    : group_(group), plan_(plan), on_failed_(std::move(on_failed)) {
    Ranks ranks;
    for (const SharedCells& cells : plan.cells)
        ranks.insert(ranks.end(), cells.takers.begin(), cells.takers.end());
    std::ranges::sort(ranks);
    const auto same = std::ranges::unique(ranks);
    ranks.erase(same.begin(), same.end());
    for (const std::uint32_t rank : ranks)
        takers_.push_back({.rank = rank});
}

void CellGiver::begin() {
    const auto address = reinterpret_cast<std::uint64_t>(&probe);
    for (const Taker& taker : takers_)
        group_.send(taker.rank, peer_message(PeerMessage::here, address));
}

CellGiver::Taker* CellGiver::find(std::uint32_t rank) {
    const auto found = std::ranges::find(takers_, rank, &Taker::rank);
    return found == takers_.end() ? nullptr : &*found;
}

bool CellGiver::needs(std::uint32_t rank) const {
    const auto found = std::ranges::find(takers_, rank, &Taker::rank);
    return found != takers_.end() && !found->done;
}

bool CellGiver::Taker::takes(const CellName& name) const {
    const auto found = std::ranges::partition_point(wants, [&](const PeerCells& cells) {
        return std::pair(cells.file, cells.last_cell) <=
               std::pair(std::uint64_t{name.file}, name.cell);
    });
    return found != wants.end() && contains(*found, name);
}

void CellGiver::on_message(std::uint32_t rank, PeerMessage type,
                           std::span<const std::byte> message) {
    Taker* taker = find(rank);
    if (taker == nullptr || taker->done)
        return lost(rank, "it takes what this rank does not give");
    if (type == PeerMessage::take_cells && !taker->told) {
        add_wants(*taker, values_of<PeerCells>(message));
    } else if (type == PeerMessage::takes && !taker->told) {
        const auto way = values_of<PeerWay>(message);
        if (way.size() != 1 || way.front() > PeerWay::slots)
            return lost(rank, "it said what makes no sense here");
        on_told(*taker, way.front());
    } else if (type == PeerMessage::cell_taken && taker->told) {
        for (const PeerCellName& name : values_of<PeerCellName>(message))
            on_taken(*taker, {static_cast<std::uint32_t>(name.file), name.cell});
    } else {
        lost(rank, "it said what makes no sense here");
    }
}

bool CellGiver::is_planned(std::uint32_t taker, const PeerCells& cells) const {
    const auto planned = std::ranges::partition_point(plan_.cells, [&](const SharedCells& one) {
        return std::pair(std::uint64_t{one.file}, one.last_cell) <=
               std::pair(cells.file, cells.first_cell);
    });
    return planned != plan_.cells.end() && planned->file == cells.file &&
           planned->first_cell <= cells.first_cell && cells.first_cell < cells.last_cell &&
           cells.last_cell <= planned->last_cell &&
           std::ranges::binary_search(planned->takers, taker);
}

void CellGiver::add_wants(Taker& taker, const std::vector<PeerCells>& wants) {
    for (const PeerCells& cells : wants) {
        const bool rises = taker.wants.empty() ||
                           std::pair(taker.wants.back().file, taker.wants.back().last_cell) <=
                               std::pair(cells.file, cells.first_cell);
        if (!rises || !is_planned(taker.rank, cells))
            return lost(taker.rank, "it takes what this rank does not give");
        taker.wants.push_back(cells);
        taker.left += cells.last_cell - cells.first_cell;
    }
}

void CellGiver::on_told(Taker& taker, PeerWay way) {
    taker.told = true;
    taker.way = way;
    if (way == PeerWay::slots && taker.left != 0) {
        auto shared = group_.share_slots(taker.rank, slot_count * plan_.chunk_bytes);
        if (!shared)
            return on_failed_(std::move(shared.error()));
        slots_.resize(slot_count);
    }
    confirm(taker);
}

std::vector<std::uint64_t> CellGiver::wanted_cells(std::uint32_t file) const {
    std::vector<std::uint64_t> cells;
    for (const Taker& taker : takers_)
        for (const PeerCells& wanted : taker.wants)
            for (std::uint64_t cell = wanted.first_cell;
                 wanted.file == file && cell < wanted.last_cell; ++cell)
                cells.push_back(cell);
    std::ranges::sort(cells);
    const auto same = std::ranges::unique(cells);
    cells.erase(same.begin(), same.end());
    return cells;
}

bool CellGiver::is_wanted(const CellName& name) const {
    return std::ranges::any_of(takers_, [&](const Taker& taker) { return taker.takes(name); });
}

void CellGiver::give(const CellName& name, const std::byte* image, std::uint64_t image_begin,
                     std::vector<ByteRange> ranges, std::function<void()> on_taken) {
    Given given{.name = name,
                .image = image,
                .image_begin = image_begin,
                .ranges = std::move(ranges),
                .on_taken = std::move(on_taken)};
    for (const Taker& taker : takers_)
        if (taker.takes(name))
            (taker.way == PeerWay::in_place ? given.in_place : given.for_slots)
                .push_back(taker.rank);
    for (const std::uint32_t taker : given.in_place)
        tell(taker, given, PeerWay::in_place, 0);
    given_.push_back(std::move(given));
    fill_slots();
    finish_given();
}

void CellGiver::tell(std::uint32_t taker, const Given& given, PeerWay way, std::uint32_t slot) {
    const PeerCell cell{.name = {given.name.file, given.name.cell},
                        .image_begin = given.image_begin,
                        .way = way,
                        .slot = slot,
                        .address = reinterpret_cast<std::uint64_t>(given.image)};
    group_.send(taker, peer_message(PeerMessage::cell, cell, std::span(given.ranges)));
}

void CellGiver::fill_slots() {
    for (Given& given : given_) {
        if (given.for_slots.empty())
            continue;
        const auto free =
            std::ranges::find_if(slots_, [](const auto& slot) { return !slot.has_value(); });
        if (free == slots_.end())
            return;
        fill_slot(static_cast<std::uint32_t>(free - slots_.begin()), given);
    }
}

void CellGiver::fill_slot(std::uint32_t slot, Given& given) {
    slots_[slot] = Slot{given.name, std::exchange(given.for_slots, {})};
    for (const std::uint32_t taker : slots_[slot]->waiting) {
        auto slots = group_.share_slots(taker, slot_count * plan_.chunk_bytes);
        if (!slots)
            return on_failed_(std::move(slots.error()));
        if (taker == slots_[slot]->waiting.front())
            for (const ByteRange range : given.ranges)
                std::memcpy(*slots + slot * plan_.chunk_bytes + (range.begin - given.image_begin),
                            given.image + (range.begin - given.image_begin), range.size());
        tell(taker, given, PeerWay::slots, slot);
    }
}

void CellGiver::on_taken(Taker& taker, const CellName& name) {
    bool was_given = false;
    for (Given& given : given_)
        was_given |= given.name == name && std::erase(given.in_place, taker.rank) != 0;
    for (std::optional<Slot>& slot : slots_)
        if (slot && slot->name == name && std::erase(slot->waiting, taker.rank) != 0) {
            was_given = true;
            if (slot->waiting.empty())
                slot.reset();
        }
    if (!was_given)
        return lost(taker.rank, "it has taken what it was not given");
    --taker.left;
    fill_slots();
    finish_given();
    confirm(taker);
}

// Calls back for those that nobody needs. Callbacks may give again.
void CellGiver::finish_given() {
    std::vector<std::function<void()>> finished;
    std::erase_if(given_, [&](Given& given) {
        if (!given.in_place.empty() || !given.for_slots.empty())
            return false;
        finished.push_back(std::move(given.on_taken));
        return true;
    });
    for (const auto& on_taken : finished)
        on_taken();
}

void CellGiver::confirm(Taker& taker) {
    if (taker.left != 0 || std::exchange(taker.done, true))
        return;
    group_.send(taker.rank, peer_message(PeerMessage::all_given));
}

void CellGiver::end() {
    given_.clear();
    slots_.clear();
}

void CellGiver::lost(std::uint32_t rank, const char* why) {
    on_failed_({.code = Errc::io_peer_lost, .operation = rank_operation(rank), .detail = why});
}

} // namespace safering::checkpoint
