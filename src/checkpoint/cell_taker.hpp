// The taker's side of a load's exchange: cells that other ranks read, copied out of their memory.
#pragma once

#include <algorithm>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include <safering/plan.hpp>

#include "checkpoint/cell_name.hpp"
#include "checkpoint/peer_group.hpp"

namespace safering::checkpoint {

/// What an owner holds of a cell: the file from `begin` on, where `ranges` have been read.
struct CellImage {
    std::uint64_t begin = 0;
    std::vector<ByteRange> ranges{};
    /// Memory of this process; null where it is at `address` of another one's.
    const std::byte* data = nullptr;
    int process = 0;
    std::uint64_t address = 0;
};

class CellTaker {
  public:
    using OnFailed = std::function<void(Error)>;
    /// Copies what this rank wants of a cell; its bytes.
    using OnCell = std::function<Result<std::uint64_t>(const CellName&, const CellImage&)>;

    /// Group and plan stay until the end.
    CellTaker(PeerGroup& group, const LoadExchange& plan, OnFailed on_failed);

    /// `wanted`: those of the cells that others own which this rank takes, rising.
    void begin(const std::vector<CellName>& wanted, OnCell on_cell);
    /// One that is for a taker.
    void on_message(std::uint32_t owner, PeerMessage type, std::span<const std::byte> message);
    /// The owner's memory may be tried again.
    void on_permitted(std::uint32_t owner);
    /// All owners have been told what this rank takes.
    bool ready() const { return std::ranges::all_of(owners_, &Owner::told); }
    /// All is here, and good.
    bool done() const { return std::ranges::all_of(owners_, &Owner::done); }
    bool needs(std::uint32_t rank) const;

    ExchangeReport take_report() { return std::move(report_); }

  private:
    struct Owner {
        std::uint32_t rank;
        std::vector<PeerCells> wants{}; // rising
        std::vector<CellName> cells{};  // the same, one by one
        std::vector<bool> taken{};      // parallel to cells
        std::size_t left = 0;
        std::uint64_t address = 0;
        bool told = false;
        bool done = false;
    };

    Owner* find(std::uint32_t rank);
    void choose_way(Owner& owner);
    void tell(Owner& owner, PeerWay way);
    void take(Owner& owner, const PeerCell& cell, std::vector<ByteRange> ranges);
    void lost(std::uint32_t rank, const char* why);

    PeerGroup& group_;
    const LoadExchange& plan_;
    OnFailed on_failed_;
    OnCell on_cell_;
    std::vector<Owner> owners_;
    ExchangeReport report_;
};

} // namespace safering::checkpoint
