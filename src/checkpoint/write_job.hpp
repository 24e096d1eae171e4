// write_data of one rank: open the planned files, write the items, fsync each file after its last
// completion, close, and tell what was written. A failed fsync is final.
#pragma once

#include <functional>

#include <safering/planner.hpp>

#include "checkpoint/cell_pipeline.hpp"
#include "plan/box.hpp"

namespace safering::checkpoint {

struct WriteJobOptions {
    bool digests = true;
    CellPipeline::Progress progress{};
    std::stop_token stop{};
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

    Result<void> plan_requests(const SavePlan& plan, SavePlanner& planner);
    Result<plan::FileSpan> add_item(const SavePlan& plan, std::size_t item, TensorView source);
    void open_files();
    Result<void> load(Cell& cell) override;
    Result<void> unload(Cell& cell) override;
    void on_file_done(std::size_t file) override;
    void on_idle() override;
    void close_files();
    void deliver();
    const plan::FileBox& box_of(std::uint32_t item) const override;
    std::uint64_t tensor_begin_of(std::uint32_t item) const override;

    std::string directory_;
    std::uint64_t chunk_bytes_;
    bool digests_;
    std::vector<Item> items_;
    WriteResults results_;
    Handler handler_;
    bool opened_ = false;
    bool closing_ = false;
    bool delivered_ = false;
};

} // namespace safering::checkpoint
