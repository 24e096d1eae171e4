#include "checkpoint/peer_group.hpp"

#include <algorithm>
#include <fstream>
#include <utility>

#include <fmt/format.h>

#include "out_of_memory.hpp"

namespace safering::checkpoint {

namespace {

// Whether Yama asks for the other process's permission.
bool needs_permission() {
    int scope = 0;
    return bool(std::ifstream("/proc/sys/kernel/yama/ptrace_scope") >> scope) && scope == 1;
}

} // namespace

std::string rank_operation(std::uint32_t rank) {
    return fmt::format("exchange with rank {}", rank);
}

Error refused_memory(std::uint32_t rank, Error why) {
    why.operation = rank_operation(rank) + ": " + why.operation;
    why.detail = "this host does not let ranks read each other's memory; give the container "
                 "CAP_SYS_PTRACE, or choose another way of exchange";
    return why;
}

Result<std::unique_ptr<PeerGroup>> PeerGroup::make(Reactor& reactor, std::string exchange,
                                                   std::uint32_t rank,
                                                   const std::vector<ExchangePeer>& partners) {
    auto hub = reactor.peers();
    if (!hub)
        return std::unexpected(std::move(hub.error()));
    std::unique_ptr<PeerGroup> group(new PeerGroup(**hub, std::move(exchange), rank));
    for (const ExchangePeer& partner : partners)
        group->peers_.push_back({.rank = partner.rank, .endpoint = partner.endpoint});
    std::ranges::sort(group->peers_, {}, &Peer::rank);
    const auto same = std::ranges::unique(group->peers_, {}, &Peer::rank);
    group->peers_.erase(same.begin(), same.end());
    return group;
}

PeerGroup::PeerGroup(PeerHub& hub, std::string exchange, std::uint32_t rank)
    : hub_(hub), exchange_(std::move(exchange)), rank_(rank), key_(exchange_, rank) {}

bool PeerGroup::claim(Reactor& reactor, std::string_view exchange, std::uint32_t rank) {
    const auto hub = reactor.peers();
    return !hub || (*hub)->claim(PeerKey(exchange, rank)); // without a hub make() says why
}

void PeerGroup::decline(Reactor& reactor, std::string_view exchange, std::uint32_t rank,
                        std::initializer_list<const std::vector<ExchangePeer>*> partners,
                        const std::string& why) {
    const auto hub = reactor.peers();
    if (!hub)
        return; // and so nobody reaches this rank: they see it
    (*hub)->refuse(PeerKey(exchange, rank));
    for (const std::vector<ExchangePeer>* side : partners)
        for (const ExchangePeer& partner : *side)
            (void)had_memory([&] {
                if (partner.rank == rank)
                    return;
                auto socket =
                    (*hub)->connect(partner.endpoint, PeerKey(exchange, partner.rank), rank);
                if (!socket) // whoever is gone needs no word
                    return;
                (*socket)->send(failed_message(why));
                (*socket)->close();
            });
}

PeerGroup::Peer& PeerGroup::peer(std::uint32_t rank) {
    const auto found = std::ranges::lower_bound(peers_, rank, {}, &Peer::rank);
    SAFERING_ASSERT(found != peers_.end() && found->rank == rank);
    return *found;
}

void PeerGroup::begin(Handlers handlers) {
    handlers_ = std::move(handlers);
    open_ = true;
    hub_.expect(key_, [this](Result<Descriptor> connection, std::uint32_t rank) {
        guarded([&] { on_connected(std::move(connection), rank); });
    });
    for (Peer& peer : peers_)
        connect(peer);
}

void PeerGroup::connect(Peer& peer) {
    auto connected = hub_.connect(peer.endpoint, PeerKey(exchange_, peer.rank), rank_);
    if (!connected) {
        connected.error().operation = rank_operation(peer.rank);
        return lost(peer, std::move(connected.error()));
    }
    peer.own = std::move(*connected);
    peer.own->start({.on_message = [](std::span<const std::byte>, const Descriptor&) {},
                     .on_closed =
                         [this, &peer](std::string_view why) {
                             hub_.poll(); // it may have come, and said something
                             if (peer.its.empty())
                                 guarded([&] { lost(peer, why); });
                         }});
}

void PeerGroup::on_connected(Result<Descriptor> connection, std::uint32_t rank) {
    if (!connection)
        return handlers_.on_failed(std::move(connection.error()));
    const auto found = std::ranges::lower_bound(peers_, rank, {}, &Peer::rank);
    if (found == peers_.end() || found->rank != rank)
        return;
    Peer& peer = *found;
    const auto socket = std::make_shared<PeerSocket>(hub_.executor(), std::move(*connection));
    peer.its.push_back(socket);
    socket->start(
        {.on_message =
             [this, &peer](std::span<const std::byte> message, Descriptor descriptor) {
                 guarded([&] { on_message(peer, message, std::move(descriptor)); });
             },
         .on_closed = [this, &peer](std::string_view why) { guarded([&] { lost(peer, why); }); }});
}

void PeerGroup::on_message(Peer& peer, std::span<const std::byte> message, Descriptor descriptor) {
    if (!open_)
        return;
    switch (type_of(message).value_or(PeerMessage::failed)) {
    case PeerMessage::permit:
        if (!permission_)
            permission_.emplace();
        return send(peer.rank, peer_message(PeerMessage::permitted));
    case PeerMessage::permitted: return handlers_.on_permitted(peer.rank);
    case PeerMessage::slots:
        return map_slots(peer, values_of<std::uint64_t>(message), std::move(descriptor));
    case PeerMessage::failed: return lost(peer, "it gave up: " + text_of(message));
    default: return handlers_.on_message(peer.rank, message);
    }
}

void PeerGroup::send(std::uint32_t rank, std::vector<std::byte> message) {
    if (const Peer& to = peer(rank); to.own)
        to.own->send(std::move(message));
}

int PeerGroup::process(std::uint32_t rank) {
    const Peer& whose = peer(rank);
    return whose.own ? whose.own->process() : 0;
}

PeerGroup::Access PeerGroup::try_memory(std::uint32_t rank, std::uint64_t address, Error& why) {
    Peer& whose = peer(rank);
    std::byte byte{};
    PeerCopy copy(process(rank));
    copy.add(&byte, 1);
    auto read = copy.read(address);
    if (read)
        return Access::granted;
    if (read.error().code == std::errc::operation_not_permitted && needs_permission() &&
        !std::exchange(whose.asked, true)) {
        send(rank, peer_message(PeerMessage::permit));
        return Access::asked;
    }
    why = std::move(read.error());
    return Access::refused;
}

Result<std::byte*> PeerGroup::share_slots(std::uint32_t rank, std::size_t bytes) {
    if (!slots_) {
        auto made = SharedSegment::create(bytes);
        if (!made) {
            made.error().operation = "exchange with ranks of this host: " + made.error().operation;
            return std::unexpected(std::move(made.error()));
        }
        slots_ = std::move(*made);
    }
    if (Peer& to = peer(rank); to.own && !std::exchange(to.has_slots, true))
        to.own->send(peer_message(PeerMessage::slots, std::uint64_t{slots_->size()}),
                     slots_->descriptor());
    return slots_->data();
}

void PeerGroup::map_slots(Peer& peer, const std::vector<std::uint64_t>& bytes,
                          Descriptor descriptor) {
    if (bytes.size() != 1 || !descriptor)
        return lost(peer, "it sent no shared memory");
    auto mapped = SharedSegment::map(std::move(descriptor), bytes.front());
    if (!mapped) {
        mapped.error().operation = rank_operation(peer.rank) + ": " + mapped.error().operation;
        return handlers_.on_failed(std::move(mapped.error()));
    }
    peer.slots = std::move(*mapped);
}

const SharedSegment* PeerGroup::slots_of(std::uint32_t rank) {
    const Peer& whose = peer(rank);
    return whose.slots ? &*whose.slots : nullptr;
}

void PeerGroup::lost(Peer& peer, std::string_view why) {
    lost(peer, {.code = Errc::io_peer_lost,
                .operation = rank_operation(peer.rank),
                .detail = std::string(why)});
}

void PeerGroup::lost(Peer& peer, Error error) {
    if (open_ && !std::exchange(peer.lost, true))
        handlers_.on_lost(peer.rank, std::move(error));
}

template <typename F>
void PeerGroup::guarded(F&& step) {
    if (!had_memory(std::forward<F>(step)) && open_)
        handlers_.on_failed(out_of_memory());
}

// Where there is no memory for a word, its partners see that it has ended.
void PeerGroup::give_up(const std::string& why) {
    for (const Peer& peer : peers_)
        if (peer.own)
            (void)had_memory([&] { peer.own->send(failed_message(why)); });
    end();
}

void PeerGroup::end() {
    open_ = false;
    handlers_ = {};
    hub_.forget(key_);
    for (Peer& peer : peers_) {
        if (peer.own)
            peer.own->close();
        for (const auto& socket : peer.its)
            socket->close();
    }
}

} // namespace safering::checkpoint
