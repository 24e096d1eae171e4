// read_data of one rank: cells of the files -> digests checked -> bytes scattered into the destinations. Where the
// plan has an exchange, some cells come from other ranks of this host instead, and others are handed to them.
#pragma once

#include <functional>
#include <future>
#include <thread>

#include <safering/storage_reader.hpp>

#include "checkpoint/cell_pipeline.hpp"
#include "checkpoint/peer_scatter.hpp"
#include "checkpoint/read_exchange.hpp"
#include "checkpoint/stored_checkpoint.hpp"
#include "io/trace.hpp"
#include "plan/box.hpp"

namespace safering::checkpoint {

struct ReadJobOptions {
    Verification verification = Verification::covered;
    CellPipeline::Progress progress{};
    std::stop_token stop{};
    /// Whether to take part in the plan's exchange.
    bool exchange = false;
    /// Called for a piece whose digest does not match; without it, that is the job's error.
    std::function<void(Error)> on_mismatch{};
};

class ReadJob final : public CellPipeline {
  public:
    using Handler = std::move_only_function<void(Result<LoadReport>)>;

    /// The planner is asked here, in plan order, for the memory of the plan's items. Checks both against the
    /// checkpoint, which must stay until the handler has run (on the reactor's thread, once).
    static Result<std::shared_ptr<ReadJob>> make(Reactor& reactor,
                                                 const StoredCheckpoint& checkpoint,
                                                 const LoadPlan& plan, LoadPlanner& planner,
                                                 ReadJobOptions options);
    /// Reads every byte of every tensor of one file and keeps none: what verify does.
    static Result<std::shared_ptr<ReadJob>> make_scan(Reactor& reactor,
                                                      const StoredCheckpoint& checkpoint,
                                                      std::size_t file, ReadJobOptions options);
    void start(Handler handler);
    /// Starts and blocks until the end. Not from the reactor's thread. Begins whether there is memory or not.
    Result<LoadReport> run();

  private:
    // One box of a stored chunk and its destination.
    struct Item {
        plan::BoxCopy copy;
        std::byte* destination = nullptr;
        std::shared_ptr<void> owner;
        std::uint64_t chunk_begin = 0; // of the stored chunk, in the file
    };
    // A cell that another rank reads.
    struct Taken {
        CellName name;
        std::size_t file; // index into files_
        plan::CellRequest request;
    };

    ReadJob(Reactor& reactor, const StoredCheckpoint& checkpoint, ReadJobOptions options);

    Result<void> choose_chunk();
    Result<void> add_items(const LoadPlan& plan, LoadPlanner& planner);
    Result<void> add_item(const ReadItem& read, const TensorStorageMetadata& tensor,
                          MutableTensorView destination);
    void plan_files(std::vector<std::vector<plan::FileSpan>> spans);
    void add_file(std::uint32_t stored, plan::RequestPlan requests);
    Result<void> join_exchange(const LoadExchange& exchange);
    void touch_destinations();
    void set_taken_apart();
    void add_given();
    void begin_exchange();
    void on_turn() override;
    Result<std::uint64_t> take(const CellName& name, const CellImage& image);
    bool is_given(const CellName& name) const;
    void give(const CellName& name, const std::shared_ptr<Cell>& cell);
    void copy_out(const Cell& cell);
    Result<Loaded> load(const std::shared_ptr<Cell>& cell) override;
    Result<Unloaded> unload(const std::shared_ptr<Cell>& cell) override;
    void on_fail(const std::string& why) override;
    void on_file_done(std::size_t file) override;
    void on_idle() override;
    const plan::FileBox& box_of(std::uint32_t item) const override;
    std::uint64_t tensor_begin_of(std::uint32_t item) const override;
    Result<void> verify(const Cell& cell);
    const StoredFile& stored(const Cell& cell) const {
        return checkpoint_.files[stored_[cell.file]];
    }
    CellName name_of(std::size_t file, const plan::CellRequest& request) const {
        return {stored_[file], request.range.begin / chunk_bytes_};
    }

    const StoredCheckpoint& checkpoint_;
    ReadJobOptions options_;
    std::vector<Item> items_;
    std::jthread touching_; // the items' memory
    // Index into files_ -> into checkpoint_.files.
    std::vector<std::uint32_t> stored_;
    std::uint64_t chunk_bytes_ = 0;
    std::unique_ptr<ReadExchange> exchange_;
    std::vector<Taken> taken_;                 // by name
    std::vector<std::shared_ptr<Cell>> given_; // that others copy out of
    PeerScatter scatter_;
    bool waiting_ = false;    // the exchange is not ready so far
    bool exchanging_ = false; // it is not done so far
    LoadReport report_;
    trace::Interval interval_;
    HandlerMemory start_memory_;
    std::promise<Result<LoadReport>> ended_; // of run()
    Handler handler_;
};

} // namespace safering::checkpoint
