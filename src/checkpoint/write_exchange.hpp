// The exchange of a save, seen from one rank: it takes other ranks' bytes for the cells that it owns, and gives
// its own to the owners of others.
//
//   1. A rank asks its sources where their items lie; they answer when they write.
//   2. It takes items from the memory of their process, one copy. Where that is refused, and items whose memory
//      is strided, it gets from the source through a segment that both map: the source fills a slot, an image of
//      the cell, and answers.
//   3. When it has what it needs it says so, and a source keeps its memory until all takers have.
//   4. Whoever fails tells the others, and an end without a word counts as failure. Nobody waits for long.
// How partners meet and how the end of one is heard is the PeerGroup's business. All of it on the reactor's executor.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <safering/plan.hpp>
#include <safering/reactor.hpp>

#include "checkpoint/peer_group.hpp"
#include "plan/box.hpp"

namespace safering::checkpoint {

class WriteExchange {
  public:
    /// An item of this rank in its memory.
    struct Source {
        const plan::BoxCopy* copy;
        const std::byte* data;
        std::uint64_t tensor_begin;
    };
    /// Must not end the exchange inside.
    struct Handlers {
        /// By the item's place in the rank's whole plan; nothing where this rank writes it by itself.
        std::function<std::optional<Source>(std::uint32_t)> source_of;
        /// All sources have told which items they give. Needs no memory, as the two that follow.
        std::function<void()> on_ready;
        /// No taker needs this rank's memory any more.
        std::function<void()> on_released;
        std::function<void(Error)> on_failed;
    };
    /// Bytes of a foreign item: absolute in the file, inside one cell.
    struct Wanted {
        std::uint32_t foreign; // index into ExchangePlan::items
        ByteRange window;
    };

    /// Errors: plan_bad_bytes for items that are no boxes of their tensors.
    static Result<std::unique_ptr<WriteExchange>> make(Reactor& reactor, const SavePlan& plan);
    /// Whether the rank may write the plan: one that exchanges can be written once, as partners end with it. Any thread.
    static bool claim(Reactor& reactor, const SavePlan& plan);
    /// Of a rank that will not write after all: its partners get `why` instead of waiting. Any thread.
    static void decline(Reactor& reactor, const SavePlan& plan, const std::string& why);
    ~WriteExchange();

    /// Throws std::bad_alloc, as take(), fetch() and finish_taking() do; end() must follow.
    void begin(Handlers handlers);
    /// Whether its source writes it by itself; from on_ready on, as what follows.
    bool kept(std::uint32_t foreign) const { return items_[foreign].kind == Kind::kept; }
    const plan::FileBox& box_of(std::uint32_t foreign) const {
        return items_[foreign].copy.file_box();
    }
    /// Puts the bytes into `image`, which holds the file from window.begin on; false where they can only be
    /// fetched. The box's bytes alone are written.
    Result<bool> take(const Wanted& wanted, std::byte* image);
    /// Has the sources fill an image of the cell at `cell_begin`, and calls back with it; the image is the
    /// callee's while that runs.
    using OnFetched = std::function<void(const std::byte* image)>;
    void fetch(std::uint64_t cell_begin, std::vector<Wanted> wanted, OnFetched on_fetched);
    /// Nothing will be taken any more.
    void finish_taking();
    /// The ranks that this one waits for, for an error; "" where there is none.
    std::string awaited() const;
    /// Tells everybody that this rank has failed, and ends.
    void give_up(const std::string& why);
    /// No handler is called any more. Must come before destruction.
    void end();

    const ExchangePlan& plan() const { return plan_; }
    ExchangeReport take_report() { return std::move(report_); }

  private:
    enum class Kind : std::uint32_t { unknown, kept, dense, strided };
    struct Item {
        plan::BoxCopy copy; // as if memory were dense
        std::uint32_t taking;
        Kind kind = Kind::unknown;
        std::uint64_t address = 0;
    };
    // A source, and what is wanted of it in order of the questions.
    struct Taking {
        std::uint32_t rank;
        std::vector<std::uint32_t> items{};
        std::size_t answered = 0;
        /// All items have been told, and it is known how to take them.
        bool told = false;
    };
    struct Giving {
        std::uint32_t rank;
        /// It needs nothing more.
        bool done = false;
    };
    struct Fetch {
        std::uint64_t cell_begin;
        std::vector<Wanted> wanted;
        OnFetched on_fetched;
        std::size_t left = 0;
    };

    explicit WriteExchange(const SavePlan& plan);

    Result<void> make_items();
    void ask(const Taking& taking);
    void on_message(std::uint32_t rank, std::span<const std::byte> message);
    void take_table(Taking& taking, const std::vector<PeerItem>& table);
    void choose_way(Taking& taking);
    void ready_if_told();
    void give_table(std::uint32_t taker, const std::vector<std::uint32_t>& wanted);
    void fill(std::uint32_t taker, const PeerOrder& order);
    void release(Giving& giving);
    Result<void> take_short_runs(const Item& item, ByteRange window, std::byte* image);
    void start_fetches();
    void order(std::uint32_t slot);
    void on_filled(std::uint32_t slot);
    void lost(std::uint32_t rank, const std::string& why);
    void fail(Error error);

    std::unique_ptr<PeerGroup> group_;
    const ExchangePlan plan_;
    const std::uint64_t chunk_bytes_;
    Handlers handlers_;
    bool open_ = false;
    bool ready_ = false;
    bool taken_ = false;
    std::vector<Item> items_; // parallel to plan_.items
    std::vector<Taking> taking_;
    std::vector<Giving> giving_;
    bool in_place_ = true;                      // takes from processes' memory
    std::byte* slots_ = nullptr;                // that sources fill
    std::vector<std::optional<Fetch>> filling_; // one a slot
    std::deque<Fetch> fetches_;
    std::vector<std::byte> scratch_; // a few rows' worth, hot in the cache
    ExchangeReport report_;
};

} // namespace safering::checkpoint
