// The owner's side of a load's exchange: cells that this rank reads, handed to those that want them.
#pragma once

#include <deque>
#include <functional>
#include <optional>
#include <vector>

#include <safering/plan.hpp>

#include "checkpoint/cell_name.hpp"
#include "checkpoint/peer_group.hpp"

namespace safering::checkpoint {

class CellGiver {
  public:
    using OnFailed = std::function<void(Error)>;

    /// Both stay until the end.
    CellGiver(PeerGroup& group, const LoadExchange& plan, OnFailed on_failed);

    void begin();
    /// One that is for an owner.
    void on_message(std::uint32_t taker, PeerMessage type, std::span<const std::byte> message);
    /// All takers have told what they take.
    bool ready() const { return std::ranges::all_of(takers_, &Taker::told); }
    /// All have it.
    bool done() const { return std::ranges::all_of(takers_, &Taker::done); }
    bool needs(std::uint32_t rank) const;

    /// Of a file, what any rank takes; rising. From ready() on.
    std::vector<std::uint64_t> wanted_cells(std::uint32_t file) const;
    bool is_wanted(const CellName& name) const;
    /// `image` holds the file from `image_begin` on, where `ranges` have been read. Calls back, perhaps in here,
    /// when nobody needs it any more.
    void give(const CellName& name, const std::byte* image, std::uint64_t image_begin,
              std::vector<ByteRange> ranges, std::function<void()> on_taken);
    /// Nobody is told anything any more, and nothing calls back.
    void end();

  private:
    struct Taker {
        std::uint32_t rank;
        std::vector<PeerCells> wants{}; // rising
        std::uint64_t left = 0;
        PeerWay way = PeerWay::in_place;
        bool told = false;
        bool done = false;

        bool takes(const CellName& name) const;
    };
    using Ranks = std::vector<std::uint32_t>;
    struct Given {
        CellName name;
        const std::byte* image = nullptr;
        std::uint64_t image_begin = 0;
        std::vector<ByteRange> ranges{};
        std::function<void()> on_taken{};
        Ranks in_place{};  // those that have not taken it
        Ranks for_slots{}; // those that wait for a slot
    };
    struct Slot {
        CellName name;
        Ranks waiting{};
    };

    Taker* find(std::uint32_t rank);
    void add_wants(Taker& taker, const std::vector<PeerCells>& wants);
    bool is_planned(std::uint32_t taker, const PeerCells& cells) const;
    void on_told(Taker& taker, PeerWay way);
    void on_taken(Taker& taker, const CellName& name);
    void fill_slots();
    void fill_slot(std::uint32_t slot, Given& given);
    void tell(std::uint32_t taker, const Given& given, PeerWay way, std::uint32_t slot);
    void finish_given();
    void confirm(Taker& taker);
    void lost(std::uint32_t rank, const char* why);

    PeerGroup& group_;
    const LoadExchange& plan_;
    OnFailed on_failed_;
    std::vector<Taker> takers_;
    std::vector<Given> given_;
    std::vector<std::optional<Slot>> slots_;
};

} // namespace safering::checkpoint
