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

    /// `plan.storage` must be set; `sources` parallel to plan.items. Checks both. The handler runs on the
    /// reactor's thread, once.
    static Result<std::shared_ptr<WriteJob>>
    make(Reactor& reactor, SavePlan plan, std::vector<TensorView> sources, WriteJobOptions options);
    /// The same, with the planner's views of the plan's items, asked for here in plan order.
    static Result<std::shared_ptr<WriteJob>> make(Reactor& reactor, SavePlan plan,
                                                  SavePlanner& planner, WriteJobOptions options);
    void start(Handler handler);
    /// Starts and blocks until the end. Not from the reactor's thread.
    Result<WriteResults> run();

  private:
    WriteJob(Reactor& reactor, SavePlan plan, std::vector<TensorView> sources,
             WriteJobOptions options);

    Result<void> plan_requests();
    void open_files();
    Result<void> load(Cell& cell) override;
    Result<void> unload(Cell& cell) override;
    void on_file_done(std::size_t file) override;
    void on_idle() override;
    void close_files();
    void deliver();
    plan::FileBox box_of(std::uint32_t item) const override;
    std::uint64_t tensor_begin_of(std::uint32_t item) const override;
    Result<plan::BoxCopy> box_copy(std::uint32_t item) const;

    SavePlan plan_;
    std::vector<TensorView> sources_;
    bool digests_;
    WriteResults results_;
    // First cell that each item's hull touches.
    std::vector<std::uint64_t> first_cell_;
    Handler handler_;
    bool opened_ = false;
    bool closing_ = false;
    bool delivered_ = false;
};

} // namespace safering::checkpoint
