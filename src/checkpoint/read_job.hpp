// read_data of one rank: cells of the files -> digests checked -> bytes scattered into the destinations.
#pragma once

#include <functional>

#include <safering/storage_reader.hpp>

#include "checkpoint/cell_pipeline.hpp"
#include "checkpoint/stored_checkpoint.hpp"
#include "plan/box.hpp"

namespace safering::checkpoint {

struct ReadJobOptions {
    Verification verification = Verification::covered;
    CellPipeline::Progress progress{};
    std::stop_token stop{};
    /// Called for a piece whose digest does not match; without it, that is the job's error.
    std::function<void(Error)> on_mismatch{};
};

class ReadJob final : public CellPipeline {
  public:
    using Handler = std::move_only_function<void(Result<LoadReport>)>;

    /// `destinations` parallel to plan.items, each of the item's lengths. Checks both against the
    /// checkpoint, which must stay until the handler has run (on the reactor's thread, once).
    static Result<std::shared_ptr<ReadJob>>
    make(Reactor& reactor, const StoredCheckpoint& checkpoint, const LoadPlan& plan,
         std::vector<MutableTensorView> destinations, ReadJobOptions options);
    /// Reads every byte of every tensor of one file and keeps none: what verify does.
    static Result<std::shared_ptr<ReadJob>> make_scan(Reactor& reactor,
                                                      const StoredCheckpoint& checkpoint,
                                                      std::size_t file, ReadJobOptions options);
    void start(Handler handler);
    /// Starts and blocks until the end. Not from the reactor's thread.
    Result<LoadReport> run();

  private:
    // One box of a stored chunk and its destination.
    struct Item {
        const TensorStorageMetadata* tensor = nullptr;
        const ReadItem* read = nullptr;
        MutableTensorView destination;
    };

    ReadJob(Reactor& reactor, const StoredCheckpoint& checkpoint, ReadJobOptions options);

    Result<void> choose_chunk();
    Result<void> add_items(std::vector<MutableTensorView> destinations);
    Result<plan::BoxCopy> box_copy(const Item& item) const;
    void plan_files(std::vector<std::vector<plan::FileSpan>> spans);
    Result<void> load(Cell& cell) override;
    Result<void> unload(Cell& cell) override;
    void on_file_done(std::size_t file) override;
    void on_idle() override;
    plan::FileBox box_of(std::uint32_t item) const override;
    std::uint64_t tensor_begin_of(std::uint32_t item) const override;
    Result<void> verify(const Cell& cell);
    const StoredFile& stored(const Cell& cell) const {
        return checkpoint_.files[stored_[cell.file]];
    }

    const StoredCheckpoint& checkpoint_;
    ReadJobOptions options_;
    LoadPlan plan_;
    std::vector<Item> items_;
    // Index into files_ -> into checkpoint_.files.
    std::vector<std::uint32_t> stored_;
    std::uint64_t chunk_bytes_ = 0;
    LoadReport report_;
    Handler handler_;
};

} // namespace safering::checkpoint
