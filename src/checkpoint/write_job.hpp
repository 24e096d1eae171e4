// write_data of one rank: exchange with the ranks of this host where the plan says so, open the planned files,
// write the items, fsync each file after its last completion, close, and tell what was written. A failed fsync
// is final.
#pragma once

#include <functional>

#include <safering/planner.hpp>

#include "checkpoint/cell_pipeline.hpp"
#include "checkpoint/throttle.hpp"
#include "checkpoint/write_exchange.hpp"
#include "io/trace.hpp"
#include "plan/box.hpp"

namespace safering::checkpoint {

struct WriteJobOptions {
    bool digests = true;
    CellPipeline::Progress progress{};
    std::stop_token stop{};
    /// Null: without limits.
    std::shared_ptr<Throttle> throttle{};
    /// Called once with what was done, well or not, before the handler of start(). On its thread.
    std::function<void(const WorkReport&)> on_work{};
};

class WriteJob final : public CellPipeline {
  public:
    using Handler = std::move_only_function<void(Result<WriteResults>)>;

    /// `plan.storage` must be set; the planner is asked here, in plan order, for the views of the plan's
    /// items. Checks both, and needs neither afterwards.
    static Result<std::shared_ptr<WriteJob>> make(Reactor& reactor, const SavePlan& plan,
                                                  SavePlanner& planner, WriteJobOptions options);
    /// The handler runs on the reactor's thread, once.
    void start(Handler handler);
    /// Starts and blocks until the end. Not from the reactor's thread.
    Result<WriteResults> run();

  private:
    // A planned item and its memory.
    struct Item {
        plan::BoxCopy copy;
        const std::byte* source = nullptr;
        std::shared_ptr<const void> owner;
        std::uint64_t tensor_begin = 0;
        // That its hull touches.
        std::uint64_t first_cell = 0;
    };

    WriteJob(Reactor& reactor, const StoragePlan& storage, WriteJobOptions options);

    // An item of another rank, in cells that this one owns.
    struct Foreign {
        std::uint32_t rank = 0;
        std::uint32_t item = 0;
        std::uint64_t tensor_begin = 0;
        std::uint64_t first_cell = 0;
    };
    static constexpr std::uint32_t not_here = ~std::uint32_t{0};

    Result<void> add_items(const SavePlan& plan, SavePlanner& planner);
    Result<void> add_item(const SavePlan& plan, std::size_t item, TensorView source);
    void hand_over(std::uint32_t file, ByteRange hull, const plan::FileSpan& span,
                   WriteResult& result);
    Result<void> join_exchange(const SavePlan& plan);
    void add_foreign(const ExchangePlan& exchange);
    Result<void> plan_files();
    void begin_exchange();
    void on_turn() override;
    void on_exchange_ready();
    std::string awaited() const override { return exchange_ ? exchange_->awaited() : ""; }
    std::optional<WriteExchange::Source> source_of(std::uint32_t item) const;
    void open_files();
    void end_opening();
    bool is_foreign(std::uint32_t item) const { return item >= items_.size(); }
    std::chrono::nanoseconds pause() override;
    Result<Loaded> load(const std::shared_ptr<Cell>& cell) override;
    bool load_staged(Cell& cell);
    std::uint64_t& digest_place(const plan::Segment& segment);
    std::uint64_t bytes_of(const plan::Segment& segment) const;
    Result<bool> take(Cell& cell, const plan::Segment& segment);
    void add_piece(const plan::Segment& segment, const std::byte* image);
    void copy_fetched(Cell& cell, const std::vector<WriteExchange::Wanted>& wanted,
                      const std::byte* slot);
    void end_loading(Cell& cell);
    void on_fail(const std::string& why) override;
    Result<Unloaded> unload(const std::shared_ptr<Cell>& cell) override;
    void on_file_done(std::size_t file) override;
    void on_idle() override;
    void close_files();
    void deliver();
    const plan::FileBox& box_of(std::uint32_t item) const override;
    std::uint64_t tensor_begin_of(std::uint32_t item) const override;

    std::string directory_;
    std::uint64_t chunk_bytes_;
    bool digests_;
    std::vector<PlannedFile> planned_;
    std::vector<std::vector<plan::FileSpan>> spans_; // of each planned file, until they are planned
    std::vector<Item> items_;
    // Segments name items first, then these.
    std::vector<Foreign> foreign_;
    std::vector<ExchangedCells> cells_;
    std::unique_ptr<WriteExchange> exchange_;
    std::vector<std::uint32_t> place_of_; // item of the whole plan -> here; empty: the same
    std::vector<std::shared_ptr<Cell>> fetching_;
    std::size_t cells_to_take_ = 0;
    bool exchanging_ = false; // not ready so far
    bool giving_ = false;     // takers need this rank's memory
    std::shared_ptr<Throttle> throttle_;
    std::function<void(const WorkReport&)> on_work_;
    WriteResults results_;
    trace::Interval interval_;
    Handler handler_;
    HandlerMemory start_memory_;
    std::size_t opening_ = 0; // files that are being opened, and who opens them
    bool closing_ = false;
    bool delivered_ = false;
};

} // namespace safering::checkpoint
