// HuggingFaceStorageWriter: saves what a plan says, by all ranks at once, into the final files.
//
// The calls and their order are DCP's (torch.distributed.checkpoint.StorageWriter):
//   every rank    plan = writer.prepare_local_plan(planner.create_local_plan())
//   coordinator   plans = writer.prepare_global_plan(create_global_plan(all plans).plans)
//   every rank    results = writer.write_data(own plan, planner).get()
//   coordinator   writer.finish(metadata, all results)
// Plans and results are values with to_bytes(); how they travel between ranks is the caller's business.
// The checkpoint exists, whole and durable, when finish has returned and not before; whatever happens
// earlier, an older checkpoint at the same path is as it was.
#pragma once

#include <functional>
#include <future>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <boost/asio/async_result.hpp>

#include <safering/completion.hpp>
#include <safering/planner.hpp>
#include <safering/reactor.hpp>
#include <safering/save_limits.hpp>
#include <safering/work_report.hpp>

namespace safering {

/// fqn -> 1-based index of its output file.
using FqnToIndexMapping = std::map<std::string, std::uint32_t, std::less<>>;

/// Which of how many ranks.
struct RankOf {
    std::uint32_t rank = 0;
    std::uint32_t ranks = 1;
};

struct WriterOptions {
    /// Empty: everything goes to model-00001-of-00001.safetensors.
    FqnToIndexMapping fqn_to_index_mapping{};
    /// full: final files. sharded: one file a rank and index, with DCP_SHARDING_INFO.
    FileLayout layout = FileLayout::full;
    /// Set on ranks that plan and save alone, without a coordinator that sees all plans (DCP's
    /// use_collectives=False); needs the sharded layout. prepare_global_plan takes this rank's plan only and
    /// checks nothing of the others', and finish adds this rank's files to the target, each by a durable
    /// rename: nothing is atomic across ranks, there is no manifest, and stale shards of an earlier save stay.
    /// A target with a manifest is refused (checkpoint_conflict).
    std::optional<RankOf> alone{};
    /// How ranks of one host bring short runs together; the coordinator's counts.
    ExchangeWay exchange = ExchangeWay::automatic;
    /// Further __metadata__ of every file.
    std::vector<std::pair<std::string, std::string>> metadata{};
    /// Take XXH3-64 digests and list them in the manifest.
    bool digests = true;
    /// What write_data leaves to the rest of the process.
    SaveLimits limits{};
    /// Called on the reactor's thread as bytes reach the disk: (done, total) of this rank. Must not block.
    std::function<void(std::uint64_t, std::uint64_t)> progress{};
};

/// How a save went.
struct SaveReport {
    std::string path;
    std::string attempt;
    std::uint64_t files = 0;
    /// Bytes of tensors.
    std::uint64_t tensor_bytes = 0;
    /// Whether an older checkpoint was replaced.
    bool replaced = false;
    /// What ranks wrote for others of their host, and how they got it; why not from their memory is a note.
    std::uint64_t process_memory_bytes = 0;
    std::uint64_t shared_memory_bytes = 0;
    /// The coordinator's prepare_global_plan and finish, and what it wrote itself. Other ranks have their own,
    /// HuggingFaceStorageWriter::work().
    double prepare_seconds = 0;
    double commit_seconds = 0;
    WorkReport work{};
    /// What each rank did, by rank, as its results told; summarise() finds the slowest. Only where it was committed.
    std::vector<RankReport> ranks{};
    ReactorInfo reactor;
    FileSystemInfo file_system;
    /// What did not go the fast way and why; leftovers that could not be cleaned away.
    std::vector<std::string> notes;
};

/// For people: what was saved, RankSummary's table, the notes. Lines that end in \n.
SAFERING_API std::string to_text(const SaveReport& report);

class SAFERING_API HuggingFaceStorageWriter {
  public:
    /// `path`: the checkpoint's directory; its parent must exist. Nothing is touched yet. A null reactor:
    /// one is made at first use, by create_tuned_reactor(). A reactor may serve several writers and readers at a time.
    explicit HuggingFaceStorageWriter(std::string path, WriterOptions options = {},
                                      std::shared_ptr<Reactor> reactor = nullptr);
    /// Waits for writes in flight and aborts an attempt that was not finished. Not from the reactor's thread,
    /// and on an embedder's io_context not after it has stopped running.
    ~HuggingFaceStorageWriter();
    HuggingFaceStorageWriter(HuggingFaceStorageWriter&&) noexcept;
    HuggingFaceStorageWriter& operator=(HuggingFaceStorageWriter&&) noexcept;

    /// Aborts an attempt in progress and forgets it; a new path if one is given.
    Result<void> reset(std::string path = {});

    /// Checks a rank's own items, and adds where other ranks of this host reach it.
    Result<SavePlan> prepare_local_plan(SavePlan plan) const;

    /// Coordinator. Lays out the files, makes the attempt directory, creates and preallocates every file and
    /// writes the headers. `plans` must be the output of create_global_plan or of DCP's planner (which
    /// deduplicates too); it is checked. The plans that come back are in the same order, each with its own
    /// part of the layout. Blocks; not from the reactor's thread.
    Result<std::vector<SavePlan>> prepare_global_plan(std::vector<SavePlan> plans);

    /// Writes a rank's items and fsyncs what it wrote. resolve_data is called here, on this thread; the
    /// rest happens on the reactor. Where the plan has an exchange, ranks wait for each other here, and the death or
    /// failure of one is the error of those that exchange with it, io_peer_lost. The completion is
    /// (std::exception_ptr, WriteResults); a std::future (whose get() throws Exception) by default. The memory behind the
    /// views, and this writer, must stay until then; a view's `owner` is held until its bytes are written.
    /// Memory that ends on the way is the error not_enough_memory; std::bad_alloc is thrown, or completed with at once,
    /// where there is none even for the completion itself.
    template <typename Token = boost::asio::use_future_t<>>
    auto async_write_data(const SavePlan& plan, SavePlanner& planner, Token&& token = {}) {
        return boost::asio::async_initiate<Token, void(std::exception_ptr, WriteResults)>(
            InitiateWrite{this}, token, &plan, &planner);
    }
    std::future<WriteResults> write_data(const SavePlan& plan, SavePlanner& planner) {
        return async_write_data(plan, planner);
    }

    /// For a rank that got its plan and will not write it: ranks of its host that wait for it get an error,
    /// io_peer_lost, that says why. A write_data that fails tells them by itself; nothing once one has begun.
    void decline(const SavePlan& plan, const std::string& why);

    /// Coordinator. The metadata commit: results of all ranks must cover the plan exactly once and belong to
    /// this attempt; manifest and index are written, everything is made durable, and one rename makes the
    /// checkpoint appear. `metadata` is what create_global_plan gave (DCP passes it; the files are described
    /// by the plan that prepare_global_plan saw). Blocks; not from the reactor's thread. An error before
    /// the commit point leaves an older checkpoint intact, and this attempt is removed; one after it says so.
    Result<SaveReport> finish(const Metadata& metadata, std::vector<WriteResults> results);

    /// Writes that have begun end with operation_canceled once what they have in flight has ended; the
    /// memory behind their views must stay until then. One thread at a time uses a writer, for this call
    /// too.
    void cancel();

    /// Writes of this writer, those that run and those to come, go on without limits. Any thread.
    void lift_limits();

    /// What this rank's write_data calls for the last plan's attempt did; also those that failed. Any thread.
    WorkReport work() const;

    /// Removes an unfinished attempt. Ranks that still write to it get errors.
    Result<void> abort();

    /// `path`/model.safetensors.index.json
    std::string metadata_path() const;
    const std::string& path() const;
    const std::shared_ptr<Reactor>& reactor();

    /// Items by the index of their output file, as DCP's _split_by_storage_plan does; all under 1 where
    /// `mapping` is empty. Errors: plan_unmapped_tensor.
    static Result<std::map<std::uint32_t, std::vector<WriteItem>>>
    split_by_storage_plan(const FqnToIndexMapping& mapping, std::vector<WriteItem> items);

    struct Impl;

  private:
    using WriteHandler = std::move_only_function<void(std::exception_ptr, WriteResults)>;
    void start_write(const SavePlan& plan, SavePlanner& planner, WriteHandler handler);
    boost::asio::io_context::executor_type executor();

    struct InitiateWrite {
        HuggingFaceStorageWriter* writer;

        template <typename CompletionHandler>
        void operator()(CompletionHandler&& handler, const SavePlan* plan,
                        SavePlanner* planner) const {
            writer->start_write(*plan, *planner,
                                dispatched<std::exception_ptr, WriteResults>(
                                    std::forward<CompletionHandler>(handler), writer->executor()));
        }
    };

    std::unique_ptr<Impl> impl_;
};

} // namespace safering
