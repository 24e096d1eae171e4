// Partners in an exchange: ranks of one host that take each other's bytes.
//
//   1. Every rank connects to each of its partners and speaks over that connection alone; it hears a partner over
//      the connection that this one has made. What is said last is heard before the end.
//   2. A partner that has not connected so far is watched by the own connection: its process answers for it.
//   3. The memory of a partner's process is tried before it is used, with Yama's permission where that is asked for;
//      where it stays closed, both map a segment of slots that one of them has made.
//   4. Whoever fails says why. An end without a word is told, too, and the user knows whether it matters.
//   5. What finds no memory when a partner is heard is this rank's failure; to end needs none.
// All of it on the reactor's executor, but claim() and decline().
#pragma once

#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <safering/plan.hpp>
#include <safering/reactor.hpp>

#include "checkpoint/peer_messages.hpp"
#include "io/peer_hub.hpp"
#include "io/peer_memory.hpp"

namespace safering::checkpoint {

class PeerGroup {
  public:
    /// Must not end the group inside. What finds no memory in the first three is told to on_failed, which needs none.
    struct Handlers {
        /// Of a partner, and what the group does not answer itself.
        std::function<void(std::uint32_t rank, std::span<const std::byte> message)> on_message;
        /// The partner's memory may be tried again.
        std::function<void(std::uint32_t rank)> on_permitted;
        /// Nothing will come from the partner any more. io_peer_lost, or what the system said.
        std::function<void(std::uint32_t rank, Error)> on_lost;
        /// This rank cannot go on.
        std::function<void(Error)> on_failed;
    };
    enum class Access {
        granted,
        asked,   ///< on_permitted follows
        refused, ///< the Error says why
    };

    /// `exchange` names it among all of the host. Errors: what the system says where it grants no socket.
    static Result<std::unique_ptr<PeerGroup>> make(Reactor& reactor, std::string exchange,
                                                   std::uint32_t rank,
                                                   const std::vector<ExchangePeer>& partners);
    /// Whether the rank takes part for the first time; with a word to its partners or without. An exchange takes place
    /// once, as these know. Any thread.
    static bool claim(Reactor& reactor, std::string_view exchange, std::uint32_t rank);
    /// Of a rank that will not take part after all: its partners get `why` instead of waiting, or see its end where there
    /// is no memory for a word. `partners`: of each list those that are not the rank itself. Any thread.
    static void decline(Reactor& reactor, std::string_view exchange, std::uint32_t rank,
                        std::initializer_list<const std::vector<ExchangePeer>*> partners,
                        const std::string& why);

    /// Throws std::bad_alloc, as send(), try_memory() and share_slots() do; end() must follow.
    void begin(Handlers handlers);
    /// `rank` is a partner, here as below.
    void send(std::uint32_t rank, std::vector<std::byte> message);
    /// The partner's process, as this one knows it.
    int process(std::uint32_t rank);
    /// Whether the byte at `address` of the partner's process can be read.
    Access try_memory(std::uint32_t rank, std::uint64_t address, Error& why);
    /// This rank's slots, made when first asked for, and given to the partner.
    Result<std::byte*> share_slots(std::uint32_t rank, std::size_t bytes);
    /// Those of the partner; null where it has given none. Before what it said later.
    const SharedSegment* slots_of(std::uint32_t rank);
    /// Tells everybody that this rank has failed, and ends.
    void give_up(const std::string& why);
    /// No handler is called any more. Must come before destruction.
    void end();

  private:
    struct Peer {
        std::uint32_t rank;
        std::string endpoint;
        std::shared_ptr<PeerSocket> own{};              // to it
        std::vector<std::shared_ptr<PeerSocket>> its{}; // from it
        std::optional<SharedSegment> slots{};           // its
        bool has_slots = false;                         // of this rank
        bool asked = false;                             // for Yama's permission
        bool lost = false;
    };

    PeerGroup(PeerHub& hub, std::string exchange, std::uint32_t rank);

    Peer& peer(std::uint32_t rank);
    void connect(Peer& peer);
    void on_connected(Result<Descriptor> connection, std::uint32_t rank);
    void on_message(Peer& peer, std::span<const std::byte> message, Descriptor descriptor);
    void map_slots(Peer& peer, const std::vector<std::uint64_t>& bytes, Descriptor descriptor);
    void lost(Peer& peer, std::string_view why);
    void lost(Peer& peer, Error error);
    template <typename F>
    void guarded(F&& step);

    PeerHub& hub_;
    const std::string exchange_;
    const std::uint32_t rank_;
    const PeerKey key_;
    Handlers handlers_;
    bool open_ = false;
    std::vector<Peer> peers_; // rising by rank; never grows after make()
    std::optional<SharedSegment> slots_;
    std::optional<PeerPermission> permission_;
};

/// "exchange with rank N", for errors.
std::string rank_operation(std::uint32_t rank);
/// What to say where the partner's memory is refused and was asked for.
Error refused_memory(std::uint32_t rank, Error why);

} // namespace safering::checkpoint
