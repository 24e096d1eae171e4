#include "checkpoint/write_exchange.hpp"

#include <algorithm>
#include <set>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "io/trace.hpp"

namespace safering::checkpoint {

namespace {

// Cells that sources fill at a time: one is on its way while another is filled.
constexpr std::uint32_t slot_count = 2;

// Below this a run is cheaper copied here from a block of the source's bytes than named to the kernel.
constexpr std::uint64_t short_run_bytes = 128;
constexpr std::uint64_t scratch_bytes = std::uint64_t{256} << 10;

constexpr std::size_t items_a_message = 2048;

std::vector<ExchangePeer> partners_of(const ExchangePlan& plan) {
    std::vector<ExchangePeer> partners = plan.sources;
    partners.insert(partners.end(), plan.takers.begin(), plan.takers.end());
    return partners;
}

template <typename Side>
Side* find(std::vector<Side>& sides, std::uint32_t rank) {
    const auto found = std::ranges::find(sides, rank, &Side::rank);
    return found == sides.end() ? nullptr : &*found;
}

} // namespace

Result<std::unique_ptr<WriteExchange>> WriteExchange::make(Reactor& reactor, const SavePlan& plan) {
    std::unique_ptr<WriteExchange> exchange(new WriteExchange(plan));
    auto group =
        PeerGroup::make(reactor, plan.storage->attempt, plan.rank, partners_of(exchange->plan_));
    if (!group)
        return std::unexpected(std::move(group.error()));
    exchange->group_ = std::move(*group);
    if (auto made = exchange->make_items(); !made)
        return std::unexpected(std::move(made.error()));
    return exchange;
}

WriteExchange::WriteExchange(const SavePlan& plan)
    : plan_(*plan.storage->exchange), chunk_bytes_(plan.storage->chunk_bytes) {
    for (const ExchangePeer& taker : plan_.takers)
        giving_.push_back({.rank = taker.rank});
}

WriteExchange::~WriteExchange() = default;

Result<void> WriteExchange::make_items() {
    for (const ExchangePeer& source : plan_.sources)
        taking_.push_back({.rank = source.rank});
    for (std::uint32_t i = 0; i < plan_.items.size(); ++i) {
        const ForeignItem& item = plan_.items[i];
        auto copy =
            plan::BoxCopy::make(item.dtype, item.size, item.chunk.offsets, item.chunk.sizes, {});
        if (!copy)
            return std::unexpected(std::move(copy.error()));
        const auto taking = std::ranges::find(taking_, item.rank, &Taking::rank);
        if (taking == taking_.end())
            return safering::fail(Errc::plan_bad_bytes, rank_operation(item.rank),
                                  "the plan has its items and not its endpoint");
        taking->items.push_back(i);
        items_.push_back({.copy = std::move(*copy),
                          .taking = static_cast<std::uint32_t>(taking - taking_.begin())});
    }
    return {};
}

bool WriteExchange::claim(Reactor& reactor, const SavePlan& plan) {
    return !plan.storage || !plan.storage->exchange ||
           PeerGroup::claim(reactor, plan.storage->attempt, plan.rank);
}

void WriteExchange::decline(Reactor& reactor, const SavePlan& plan, const std::string& why) {
    if (plan.storage && plan.storage->exchange)
        PeerGroup::decline(reactor, plan.storage->attempt, plan.rank,
                           {&plan.storage->exchange->sources, &plan.storage->exchange->takers},
                           why);
}

void WriteExchange::begin(Handlers handlers) {
    handlers_ = std::move(handlers);
    open_ = true;
    in_place_ = plan_.way != ExchangeWay::shared_memory;
    group_->begin(
        {.on_message = [this](std::uint32_t rank,
                              std::span<const std::byte> message) { on_message(rank, message); },
         .on_permitted =
             [this](std::uint32_t rank) {
                 if (Taking* taking = find(taking_, rank))
                     choose_way(*taking);
             },
         .on_lost =
             [this](std::uint32_t rank, Error error) {
                 const Giving* giving = find(giving_, rank);
                 if ((find(taking_, rank) != nullptr && !taken_) ||
                     (giving != nullptr && !giving->done))
                     fail(std::move(error));
             },
         .on_failed = [this](Error error) { fail(std::move(error)); }});
    for (const Taking& taking : taking_)
        ask(taking);
    ready_if_told();
}

void WriteExchange::ask(const Taking& taking) {
    const std::span<const std::uint32_t> all(taking.items);
    for (std::size_t begin = 0; begin < all.size(); begin += items_a_message) {
        std::vector<std::uint32_t> wanted;
        for (const std::uint32_t i :
             all.subspan(begin, std::min(items_a_message, all.size() - begin)))
            wanted.push_back(plan_.items[i].item);
        group_->send(taking.rank,
                     peer_message<std::uint32_t>(PeerMessage::want, std::span(wanted)));
    }
}

void WriteExchange::on_message(std::uint32_t rank, std::span<const std::byte> message) {
    if (!open_)
        return;
    Taking* taking = find(taking_, rank);
    Giving* giving = find(giving_, rank);
    const PeerMessage type = type_of(message).value_or(PeerMessage::failed);
    if (giving != nullptr && type == PeerMessage::want) {
        give_table(rank, values_of<std::uint32_t>(message));
    } else if (giving != nullptr && type == PeerMessage::fill) {
        for (const PeerOrder& order : values_of<PeerOrder>(message))
            fill(rank, order);
    } else if (giving != nullptr && type == PeerMessage::done) {
        release(*giving);
    } else if (taking != nullptr && type == PeerMessage::table) {
        take_table(*taking, values_of<PeerItem>(message));
    } else if (taking != nullptr && type == PeerMessage::filled) {
        for (const std::uint32_t slot : values_of<std::uint32_t>(message))
            on_filled(slot);
    } else {
        lost(rank, "it said what makes no sense here");
    }
}

void WriteExchange::take_table(Taking& taking, const std::vector<PeerItem>& table) {
    if (table.empty() || table.size() > taking.items.size() - taking.answered)
        return lost(taking.rank, "it told of other items than it was asked for");
    for (const PeerItem& told : table) {
        if (told.kind < static_cast<std::uint64_t>(Kind::kept) ||
            told.kind > static_cast<std::uint64_t>(Kind::strided))
            return lost(taking.rank, "it said what makes no sense here");
        Item& item = items_[taking.items[taking.answered++]];
        item.kind = static_cast<Kind>(told.kind);
        item.address = told.address;
    }
    if (taking.answered == taking.items.size())
        choose_way(taking);
}

// Whether the source's memory can be read, by trying.
void WriteExchange::choose_way(Taking& taking) {
    const auto first = std::ranges::find_if(taking.items, [&](std::uint32_t i) {
        return items_[i].kind == Kind::dense && box_of(i).bytes() != 0;
    });
    if (!in_place_ || first == taking.items.end()) {
        taking.told = true;
        return ready_if_told();
    }
    Error why;
    const auto access = group_->try_memory(taking.rank, items_[*first].address, why);
    if (access == PeerGroup::Access::asked)
        return;
    if (access == PeerGroup::Access::refused) {
        if (plan_.way == ExchangeWay::process_memory)
            return fail(refused_memory(taking.rank, std::move(why)));
        in_place_ = false;
        report_.reason = why.message();
    }
    taking.told = true;
    ready_if_told();
}

void WriteExchange::ready_if_told() {
    if (!open_ || ready_ || !std::ranges::all_of(taking_, &Taking::told))
        return;
    ready_ = true;
    handlers_.on_ready();
}

void WriteExchange::give_table(std::uint32_t taker, const std::vector<std::uint32_t>& wanted) {
    std::vector<PeerItem> table;
    for (const std::uint32_t item : wanted) {
        const auto source = handlers_.source_of(item);
        const Kind kind = !source                        ? Kind::kept
                          : source->copy->memory_dense() ? Kind::dense
                                                         : Kind::strided;
        table.push_back({source ? reinterpret_cast<std::uint64_t>(source->data) : 0,
                         static_cast<std::uint64_t>(kind)});
    }
    group_->send(taker,
                 peer_message<PeerItem>(PeerMessage::table, std::span<const PeerItem>(table)));
}

void WriteExchange::fill(std::uint32_t taker, const PeerOrder& order) {
    const auto source = handlers_.source_of(order.item);
    const SharedSegment* slots = group_->slots_of(taker);
    const bool fits = slots != nullptr && source && order.begin <= order.end &&
                      order.begin >= std::max(order.cell_begin, source->tensor_begin) &&
                      order.end - order.cell_begin <= chunk_bytes_ &&
                      order.slot < slots->size() / chunk_bytes_;
    if (!fits)
        return lost(taker, "it asked for bytes that this rank does not give");
    std::byte* slot = slots->data() + order.slot * chunk_bytes_;
    source->copy->gather(source->data, slot + (order.begin - order.cell_begin),
                         {order.begin - source->tensor_begin, order.end - source->tensor_begin});
    group_->send(taker, peer_message(PeerMessage::filled, order.slot));
}

void WriteExchange::release(Giving& giving) {
    giving.done = true;
    if (std::ranges::all_of(giving_, &Giving::done))
        handlers_.on_released();
}

Result<bool> WriteExchange::take(const Wanted& wanted, std::byte* image) {
    const Item& item = items_[wanted.foreign];
    SAFERING_ASSERT(ready_ && item.kind != Kind::kept);
    if (item.kind != Kind::dense || !in_place_)
        return false;
    const std::uint64_t tensor_begin = plan_.items[wanted.foreign].placement.tensor_begin;
    const ByteRange window{wanted.window.begin - tensor_begin, wanted.window.end - tensor_begin};
    const trace::Span span("take from another rank", window.size());
    const plan::FileBox& box = item.copy.file_box();
    const std::uint64_t before = box.bytes_before(window.begin);
    Result<void> taken;
    if (!box.contiguous() && box.run_bytes() < short_run_bytes) {
        taken = take_short_runs(item, window, image);
    } else {
        PeerCopy copy(group_->process(taking_[item.taking].rank));
        box.for_each_run(window, [&](ByteRange run) {
            copy.add(image + (run.begin - window.begin), run.size());
        });
        taken = copy.read(item.address + before);
    }
    if (!taken) {
        taken.error().operation = fmt::format("take bytes of rank {}: {}",
                                              taking_[item.taking].rank, taken.error().operation);
        return std::unexpected(std::move(taken.error()));
    }
    report_.process_memory_bytes += box.bytes_before(window.end) - before;
    return true;
}

Result<void> WriteExchange::take_short_runs(const Item& item, ByteRange window, std::byte* image) {
    const plan::FileBox& box = item.copy.file_box();
    scratch_.resize(scratch_bytes);
    for (std::uint64_t at = window.begin; at < window.end;) {
        const ByteRange part{at, std::min(window.end, at + scratch_bytes)};
        const std::uint64_t before = box.bytes_before(part.begin);
        const std::uint64_t bytes = box.bytes_before(part.end) - before;
        PeerCopy copy(group_->process(taking_[item.taking].rank));
        copy.add(scratch_.data(), bytes);
        if (auto read = bytes != 0 ? copy.read(item.address + before) : Result<void>(); !read)
            return read;
        // The copy counts from the box's first byte, which lies before what is here.
        const auto box_memory = reinterpret_cast<std::uintptr_t>(scratch_.data()) - before;
        item.copy.gather(reinterpret_cast<const std::byte*>(box_memory),
                         image + (part.begin - window.begin), part);
        at = part.end;
    }
    return {};
}

void WriteExchange::fetch(std::uint64_t cell_begin, std::vector<Wanted> wanted,
                          OnFetched on_fetched) {
    SAFERING_ASSERT(ready_ && !wanted.empty());
    fetches_.push_back({cell_begin, std::move(wanted), std::move(on_fetched)});
    start_fetches();
}

void WriteExchange::start_fetches() {
    filling_.resize(slot_count);
    for (std::uint32_t slot = 0; slot < filling_.size() && !fetches_.empty() && open_; ++slot)
        if (!filling_[slot]) {
            filling_[slot] = std::move(fetches_.front());
            fetches_.pop_front();
            order(slot);
        }
}

void WriteExchange::order(std::uint32_t slot) {
    Fetch& fetch = *filling_[slot];
    fetch.left = fetch.wanted.size();
    for (const Wanted& wanted : fetch.wanted) {
        const std::uint32_t source = taking_[items_[wanted.foreign].taking].rank;
        auto slots = group_->share_slots(source, slot_count * chunk_bytes_);
        if (!slots)
            return fail(std::move(slots.error()));
        slots_ = *slots;
        group_->send(
            source, peer_message(PeerMessage::fill,
                                 PeerOrder{slot, plan_.items[wanted.foreign].item, fetch.cell_begin,
                                           wanted.window.begin, wanted.window.end}));
    }
}

void WriteExchange::on_filled(std::uint32_t slot) {
    if (slot >= filling_.size() || !filling_[slot])
        return;
    if (--filling_[slot]->left != 0)
        return;
    // What is called may end the exchange.
    const Fetch fetch = *std::exchange(filling_[slot], std::nullopt);
    for (const Wanted& wanted : fetch.wanted) {
        const std::uint64_t begin = plan_.items[wanted.foreign].placement.tensor_begin;
        const plan::FileBox& box = box_of(wanted.foreign);
        report_.shared_memory_bytes += box.bytes_before(wanted.window.end - begin) -
                                       box.bytes_before(wanted.window.begin - begin);
    }
    fetch.on_fetched(slots_ + slot * chunk_bytes_);
    start_fetches();
}

void WriteExchange::finish_taking() {
    if (!open_ || std::exchange(taken_, true))
        return;
    for (const Taking& taking : taking_)
        group_->send(taking.rank, peer_message(PeerMessage::done));
}

std::string WriteExchange::awaited() const {
    std::set<std::uint32_t> ranks;
    for (const Taking& taking : taking_)
        if (!taking.told)
            ranks.insert(taking.rank);
    for (const Giving& giving : giving_)
        if (!giving.done)
            ranks.insert(giving.rank);
    for (const auto& fetch : filling_)
        if (fetch)
            for (const Wanted& wanted : fetch->wanted)
                ranks.insert(taking_[items_[wanted.foreign].taking].rank);
    return ranks.empty() ? std::string()
                         : fmt::format("it waited for rank {}", fmt::join(ranks, ", "));
}

void WriteExchange::lost(std::uint32_t rank, const std::string& why) {
    fail({.code = Errc::io_peer_lost, .operation = rank_operation(rank), .detail = why});
}

void WriteExchange::fail(Error error) {
    if (std::exchange(open_, false))
        handlers_.on_failed(std::move(error));
}

void WriteExchange::give_up(const std::string& why) {
    group_->give_up(why);
    end();
}

void WriteExchange::end() {
    open_ = false;
    handlers_ = {};
    group_->end();
    fetches_.clear();
    filling_.clear();
}

} // namespace safering::checkpoint
