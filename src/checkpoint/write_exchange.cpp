#include "checkpoint/write_exchange.hpp"

#include <algorithm>
#include <fstream>
#include <utility>

#include <fmt/format.h>

namespace safering::checkpoint {

namespace {

// Cells that sources fill at a time: one is on its way while another is filled.
constexpr std::uint32_t slot_count = 2;

// Below this a run is cheaper copied here from a block of the source's bytes than named to the kernel.
constexpr std::uint64_t short_run_bytes = 128;
constexpr std::uint64_t scratch_bytes = std::uint64_t{256} << 10;

constexpr std::size_t items_a_message = 2048;

std::string key_of(std::string_view attempt, std::uint32_t rank) {
    return fmt::format("{}/{}", attempt, rank);
}

std::string rank_operation(std::uint32_t rank) {
    return fmt::format("exchange with rank {}", rank);
}

// Whether Yama asks for the other process's permission.
bool needs_permission() {
    int scope = 0;
    return bool(std::ifstream("/proc/sys/kernel/yama/ptrace_scope") >> scope) && scope == 1;
}

} // namespace

Result<std::unique_ptr<WriteExchange>> WriteExchange::make(Reactor& reactor, const SavePlan& plan) {
    auto hub = reactor.peers();
    if (!hub)
        return std::unexpected(std::move(hub.error()));
    std::unique_ptr<WriteExchange> exchange(new WriteExchange(reactor, plan));
    exchange->hub_ = *hub;
    if (auto made = exchange->make_items(); !made)
        return std::unexpected(std::move(made.error()));
    return exchange;
}

WriteExchange::WriteExchange(Reactor& reactor, const SavePlan& plan)
    : reactor_(reactor), plan_(*plan.storage->exchange), attempt_(plan.storage->attempt),
      rank_(plan.rank), chunk_bytes_(plan.storage->chunk_bytes), key_(key_of(attempt_, rank_)),
      takers_left_(plan_.takers.size()) {}

WriteExchange::~WriteExchange() = default;

Result<void> WriteExchange::make_items() {
    for (const ExchangePlan::Peer& source : plan_.sources)
        taking_.push_back({.rank = source.rank, .socket = {}, .items = {}});
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

void WriteExchange::decline(Reactor& reactor, const SavePlan& plan, const std::string& why) {
    if (!plan.storage || !plan.storage->exchange)
        return;
    auto hub = reactor.peers();
    const ExchangePlan& exchange = *plan.storage->exchange;
    for (const auto* peers : {&exchange.sources, &exchange.takers})
        for (const ExchangePlan::Peer& peer : *peers) {
            if (!hub)
                continue;
            auto socket =
                (*hub)->connect(peer.endpoint, key_of(plan.storage->attempt, peer.rank), plan.rank);
            if (!socket) // whoever is gone needs no word
                continue;
            (*socket)->send(failed_message(why));
            (*socket)->close();
        }
}

void WriteExchange::begin(Handlers handlers) {
    handlers_ = std::move(handlers);
    open_ = true;
    in_place_ = plan_.way != ExchangeWay::shared_memory;
    hub_->expect(key_, [this](std::shared_ptr<PeerSocket> socket, std::uint32_t rank) {
        on_connected(std::move(socket), rank);
    });
    for (std::size_t t = 0; t < taking_.size() && open_; ++t) {
        connect(plan_.sources[t], taking_[t].socket);
        if (open_)
            ask(t);
    }
    for (std::size_t t = 0; t < plan_.takers.size() && open_; ++t) {
        const std::uint32_t rank = plan_.takers[t].rank;
        connect(plan_.takers[t], watching_.emplace_back());
        if (!open_)
            return;
        watching_[t]->send(peer_message(PeerMessage::watch));
        watching_[t]->start(
            {.on_message =
                 [this, rank](std::span<const std::byte> message, const Descriptor&) {
                     if (type_of(message) == PeerMessage::failed)
                         lost(rank, "it gave up: " + text_of(message));
                 },
             .on_closed =
                 [this, rank](const std::string& why) {
                     if (!released(rank))
                         lost(rank, why);
                 }});
    }
    ready_if_told();
}

void WriteExchange::connect(const ExchangePlan::Peer& peer, std::shared_ptr<PeerSocket>& socket) {
    auto connected = hub_->connect(peer.endpoint, key_of(attempt_, peer.rank), rank_);
    if (connected) {
        socket = std::move(*connected);
        return;
    }
    connected.error().operation = rank_operation(peer.rank);
    fail(std::move(connected.error()));
}

void WriteExchange::ask(std::size_t t) {
    Taking& taking = taking_[t];
    const std::span<const std::uint32_t> all(taking.items);
    for (std::size_t begin = 0; begin < all.size(); begin += items_a_message) {
        std::vector<std::uint32_t> wanted;
        for (const std::uint32_t i :
             all.subspan(begin, std::min(items_a_message, all.size() - begin)))
            wanted.push_back(plan_.items[i].item);
        taking.socket->send(peer_message<std::uint32_t>(PeerMessage::want, std::span(wanted)));
    }
    taking.socket->start(
        {.on_message = [this, t](std::span<const std::byte> message,
                                 const Descriptor&) { on_taking_message(t, message); },
         .on_closed =
             [this, t](const std::string& why) {
                 if (!taken_)
                     lost(taking_[t].rank, why);
             }});
}

// Some rank of this save, as a taker or to watch.
void WriteExchange::on_connected(std::shared_ptr<PeerSocket> socket, std::uint32_t rank) {
    Giving& giving = *giving_.emplace_back(std::make_unique<Giving>(rank, std::move(socket)));
    giving.socket->start(
        {.on_message =
             [this, &giving](std::span<const std::byte> message, Descriptor descriptor) {
                 on_giving_message(giving, message, std::move(descriptor));
             },
         // A taker's end is seen by the connection that this rank has made to it.
         .on_closed = [](const std::string&) {}});
}

void WriteExchange::on_taking_message(std::size_t t, std::span<const std::byte> message) {
    Taking& taking = taking_[t];
    switch (type_of(message).value_or(PeerMessage::failed)) {
    case PeerMessage::table: return take_table(taking, values_of<PeerItem>(message));
    case PeerMessage::permitted: return choose_way(taking);
    case PeerMessage::filled:
        for (const std::uint32_t slot : values_of<std::uint32_t>(message))
            on_filled(slot);
        return;
    case PeerMessage::failed: return lost(taking.rank, "it gave up: " + text_of(message));
    default: return lost(taking.rank, "it said what makes no sense here");
    }
}

void WriteExchange::on_giving_message(Giving& giving, std::span<const std::byte> message,
                                      Descriptor descriptor) {
    switch (type_of(message).value_or(PeerMessage::failed)) {
    case PeerMessage::watch: return;
    case PeerMessage::want: return give_table(giving, values_of<std::uint32_t>(message));
    case PeerMessage::permit:
        if (!permission_)
            permission_.emplace();
        return giving.socket->send(peer_message(PeerMessage::permitted));
    case PeerMessage::segment:
        return map_segment(giving, values_of<std::uint64_t>(message), std::move(descriptor));
    case PeerMessage::fill:
        for (const PeerOrder& order : values_of<PeerOrder>(message))
            fill(giving, order);
        return;
    case PeerMessage::done: return release(giving);
    case PeerMessage::failed: return lost(giving.rank, "it gave up: " + text_of(message));
    default: return lost(giving.rank, "it said what makes no sense here");
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
    std::byte byte{};
    PeerCopy copy(taking.socket->process());
    copy.add(&byte, 1);
    auto read = copy.read(items_[*first].address);
    if (!read && read.error().code == std::errc::operation_not_permitted && needs_permission() &&
        !std::exchange(taking.asked, true)) {
        taking.socket->send(peer_message(PeerMessage::permit));
        return;
    }
    if (!read && plan_.way == ExchangeWay::process_memory) {
        read.error().operation = rank_operation(taking.rank) + ": " + read.error().operation;
        read.error().detail = "this host does not let ranks read each other's memory; give the "
                              "container CAP_SYS_PTRACE, or choose another way of exchange";
        return fail(std::move(read.error()));
    }
    if (!read) {
        in_place_ = false;
        report_.reason = read.error().message();
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

void WriteExchange::give_table(Giving& giving, const std::vector<std::uint32_t>& wanted) {
    std::vector<PeerItem> table;
    for (const std::uint32_t item : wanted) {
        const auto source = handlers_.source_of(item);
        const Kind kind = !source                        ? Kind::kept
                          : source->copy->memory_dense() ? Kind::dense
                                                         : Kind::strided;
        table.push_back({source ? reinterpret_cast<std::uint64_t>(source->data) : 0,
                         static_cast<std::uint64_t>(kind)});
    }
    giving.socket->send(
        peer_message<PeerItem>(PeerMessage::table, std::span<const PeerItem>(table)));
}

void WriteExchange::map_segment(Giving& giving, const std::vector<std::uint64_t>& bytes,
                                Descriptor descriptor) {
    if (bytes.size() != 1 || !descriptor)
        return lost(giving.rank, "it sent no shared memory");
    auto mapped = SharedSegment::map(std::move(descriptor), bytes.front());
    if (!mapped) {
        mapped.error().operation = rank_operation(giving.rank) + ": " + mapped.error().operation;
        return fail(std::move(mapped.error()));
    }
    giving.segment = std::move(*mapped);
}

void WriteExchange::fill(Giving& giving, const PeerOrder& order) {
    const auto source = handlers_.source_of(order.item);
    const bool fits = giving.segment && source && order.begin <= order.end &&
                      order.begin >= std::max(order.cell_begin, source->tensor_begin) &&
                      order.end - order.cell_begin <= chunk_bytes_ &&
                      order.slot < giving.segment->size() / chunk_bytes_;
    if (!fits)
        return lost(giving.rank, "it asked for bytes that this rank does not give");
    std::byte* slot = giving.segment->data() + order.slot * chunk_bytes_;
    source->copy->gather(source->data, slot + (order.begin - order.cell_begin),
                         {order.begin - source->tensor_begin, order.end - source->tensor_begin});
    giving.socket->send(peer_message(PeerMessage::filled, order.slot));
}

void WriteExchange::release(Giving& giving) {
    if (std::exchange(giving.done, true) || --takers_left_ != 0)
        return;
    handlers_.on_released();
}

bool WriteExchange::released(std::uint32_t taker) const {
    return std::ranges::any_of(
        giving_, [&](const auto& giving) { return giving->rank == taker && giving->done; });
}

Result<bool> WriteExchange::take(const Wanted& wanted, std::byte* image) {
    const Item& item = items_[wanted.foreign];
    SAFERING_ASSERT(ready_ && item.kind != Kind::kept);
    if (item.kind != Kind::dense || !in_place_)
        return false;
    const std::uint64_t tensor_begin = plan_.items[wanted.foreign].placement.tensor_begin;
    const ByteRange window{wanted.window.begin - tensor_begin, wanted.window.end - tensor_begin};
    const plan::FileBox& box = item.copy.file_box();
    const std::uint64_t before = box.bytes_before(window.begin);
    Result<void> taken;
    if (!box.contiguous() && box.run_bytes() < short_run_bytes) {
        taken = take_short_runs(item, window, image);
    } else {
        PeerCopy copy(taking_[item.taking].socket->process());
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
        PeerCopy copy(taking_[item.taking].socket->process());
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
    if (!slots_ && !fetches_.empty()) {
        auto slots = SharedSegment::create(slot_count * chunk_bytes_);
        if (!slots) {
            slots.error().operation =
                "exchange with ranks of this host: " + slots.error().operation;
            return fail(std::move(slots.error()));
        }
        slots_ = std::move(*slots);
        filling_.resize(slot_count);
    }
    for (std::uint32_t slot = 0; slot < filling_.size() && !fetches_.empty(); ++slot)
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
        Taking& taking = taking_[items_[wanted.foreign].taking];
        if (!std::exchange(taking.has_segment, true))
            taking.socket->send(peer_message(PeerMessage::segment, std::uint64_t{slots_->size()}),
                                slots_->descriptor());
        taking.socket->send(peer_message(
            PeerMessage::fill, PeerOrder{slot, plan_.items[wanted.foreign].item, fetch.cell_begin,
                                         wanted.window.begin, wanted.window.end}));
    }
}

void WriteExchange::on_filled(std::uint32_t slot) {
    if (slot >= filling_.size() || !filling_[slot])
        return;
    Fetch& fetch = *filling_[slot];
    if (--fetch.left != 0)
        return;
    for (const Wanted& wanted : fetch.wanted) {
        const std::uint64_t begin = plan_.items[wanted.foreign].placement.tensor_begin;
        const plan::FileBox& box = box_of(wanted.foreign);
        report_.shared_memory_bytes += box.bytes_before(wanted.window.end - begin) -
                                       box.bytes_before(wanted.window.begin - begin);
    }
    const OnFetched on_fetched = std::move(fetch.on_fetched);
    on_fetched(slots_->data() + slot * chunk_bytes_);
    filling_[slot].reset();
    start_fetches();
}

void WriteExchange::finish_taking() {
    if (!open_ || std::exchange(taken_, true))
        return;
    for (const Taking& taking : taking_)
        taking.socket->send(peer_message(PeerMessage::done));
}

void WriteExchange::lost(std::uint32_t rank, const std::string& why) {
    fail({.code = Errc::io_peer_lost, .operation = rank_operation(rank), .detail = why});
}

void WriteExchange::fail(Error error) {
    if (std::exchange(open_, false))
        handlers_.on_failed(std::move(error));
}

void WriteExchange::give_up(const std::string& why) {
    const std::vector<std::byte> message = failed_message(why);
    for (const Taking& taking : taking_)
        if (taking.socket)
            taking.socket->send(message);
    for (const auto& socket : watching_)
        if (socket)
            socket->send(message);
    end();
}

void WriteExchange::end() {
    open_ = false;
    handlers_ = {};
    hub_->forget(key_);
    for (const Taking& taking : taking_)
        if (taking.socket)
            taking.socket->close();
    for (const auto& giving : giving_)
        giving->socket->close();
    for (const auto& socket : watching_)
        if (socket)
            socket->close();
    fetches_.clear();
    filling_.clear();
}

} // namespace safering::checkpoint
