// The exchange of a load, seen from one rank: it reads cells of the files for others, and takes cells that others read.
//
//   1. An owner tells its takers of a byte in its memory; they try it, and answer which of its cells they take and how.
//      All have answered before the first byte is read.
//   2. When a cell is read and checked, its takers are told where it lies, and copy what they want of it out of the
//      owner's buffer; where that is refused, out of a slot of a segment that both map. They say so, and the buffer
//      is free.
//   3. An owner that has given a taker all says so, too, and only then has that what it took: the memory of an owner
//      that has failed meanwhile may hold anything.
// How partners meet and how the end of one is heard is the PeerGroup's business. All of it on the reactor's executor.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <safering/plan.hpp>
#include <safering/reactor.hpp>

#include "checkpoint/cell_giver.hpp"
#include "checkpoint/cell_taker.hpp"

namespace safering::checkpoint {

class ReadExchange {
  public:
    /// Must not end the exchange inside.
    struct Handlers {
        /// All have told what they take: the giver's wanted cells are known. Needs no memory, as on_done and on_failed.
        std::function<void()> on_ready;
        CellTaker::OnCell on_cell;
        /// All is taken and given.
        std::function<void()> on_done;
        std::function<void(Error)> on_failed;
    };

    /// Errors: plan_bad_bytes for a plan that contradicts itself, or was made with another reactor; what the system says
    /// where it grants no socket.
    static Result<std::unique_ptr<ReadExchange>> make(Reactor& reactor, LoadExchange plan);
    /// Of a rank that will not take part: its partners get `why`. Any thread.
    static void decline(Reactor& reactor, const LoadExchange& plan, const std::string& why);

    /// `wanted`: those of the cells that others own which this rank takes, rising. Throws std::bad_alloc; end() must
    /// follow.
    void begin(Handlers handlers, const std::vector<CellName>& wanted);
    /// Who reads a cell for this rank or, if it is this rank, for others; nothing where it is not exchanged.
    std::optional<std::uint32_t> owner_of(const CellName& name) const;
    /// What is to be read of a cell that this rank owns. Rising.
    std::vector<ByteRange> reads_of(const CellName& name) const;
    CellGiver& giver() { return giver_; }
    const CellGiver& giver() const { return giver_; }
    /// Tells everybody that this rank has failed, and ends.
    void give_up(const std::string& why);
    /// No handler is called any more. Must come before destruction.
    void end();

    const LoadExchange& plan() const { return plan_; }
    ExchangeReport take_report() { return taker_.take_report(); }

  private:
    ReadExchange(std::unique_ptr<PeerGroup> group, LoadExchange plan);

    void on_message(std::uint32_t rank, std::span<const std::byte> message);
    void tell_progress();
    void fail(Error error);

    const LoadExchange plan_;
    std::unique_ptr<PeerGroup> group_;
    CellGiver giver_;
    CellTaker taker_;
    Handlers handlers_;
    bool open_ = false;
    bool ready_ = false;
    bool done_ = false;
};

} // namespace safering::checkpoint
