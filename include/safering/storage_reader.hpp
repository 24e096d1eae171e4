// HuggingFaceStorageReader: loads boxes of tensors from any checkpoint in this format, with any sharding:
// ours (by its manifest), a Hugging Face directory (by its index, or every *.safetensors), DCP's shard-...
// files, or a single file.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <boost/asio/async_result.hpp>

#include <safering/completion.hpp>
#include <safering/planner.hpp>
#include <safering/reactor.hpp>
#include <safering/work_report.hpp>

namespace safering {

enum class Verification : std::uint8_t {
    off,
    /// Every saved extent that a load reads whole is checked against the manifest's digest before its bytes
    /// count as loaded; a load of whole tensors checks every byte.
    covered,
    /// Reads are widened to whole extents, so that every byte loaded is checked.
    all,
};

/// What DCP_SHARDING_INFO in the __metadata__ of a file does.
enum class ShardingInfo : std::uint8_t {
    apply, ///< it places the file's tensors in global ones, which all files together must cover
    /// Nothing: each stored tensor is a whole one, as readers that do not know DCP take it. Of a
    /// single shard this is the only way to load; shards together repeat each other's names.
    ignore,
};

struct ReaderOptions {
    Verification verification = Verification::covered;
    /// Refuse symbolic links under the checkpoint's file names (a Hub cache has them).
    bool strict = false;
    ShardingInfo sharding_info = ShardingInfo::apply;
    /// How ranks of one host hand on what several of them would read. That of the reader whose
    /// prepare_global_plan is called counts; one that is `off` elsewhere keeps that rank out.
    ExchangeWay exchange = ExchangeWay::automatic;
    /// Called on the reactor's thread as bytes arrive: (done, total). Must not block.
    std::function<void(std::uint64_t, std::uint64_t)> progress{};
};

/// How a load went.
struct LoadReport {
    /// Bytes asked for, bytes read from the files, and bytes that a digest covered.
    std::uint64_t tensor_bytes = 0;
    std::uint64_t read_bytes = 0;
    std::uint64_t verified_bytes = 0;
    /// What this rank took from others of its host, whose reading and checking counts there.
    ExchangeReport exchange;
    WorkReport work{};
    ReactorInfo reactor;
    std::vector<std::string> notes;
};

class SAFERING_API HuggingFaceStorageReader {
  public:
    /// `path`: a directory or one *.safetensors file. Nothing is touched yet. A null reactor: one is made at first
    /// use, by create_tuned_reactor().
    explicit HuggingFaceStorageReader(std::string path, ReaderOptions options = {},
                                      std::shared_ptr<Reactor> reactor = nullptr);
    /// Waits for loads in flight. Not from the reactor's thread.
    ~HuggingFaceStorageReader();
    HuggingFaceStorageReader(HuggingFaceStorageReader&&) noexcept;
    HuggingFaceStorageReader& operator=(HuggingFaceStorageReader&&) noexcept;

    /// Forgets what was read; a new path if one is given.
    void reset(std::string path = {});

    /// Opens the files, reads and checks every header, and tells what is stored. Finishes the switch of a
    /// save that was cut off after its commit point. Blocks; not from the reactor's thread. The files stay
    /// open until reset or destruction, so a load reads the checkpoint that was looked at here even if it
    /// is replaced meanwhile.
    Result<Metadata> read_metadata();

    /// As DCP has them; both check the items against the metadata. The first adds what this rank would read,
    /// the second, which one rank calls with the plans of all, who reads what for whom: plan i becomes that
    /// of rank i. A plan that has not been through both is loaded without others.
    Result<LoadPlan> prepare_local_plan(LoadPlan plan);
    Result<std::vector<LoadPlan>> prepare_global_plan(std::vector<LoadPlan> plans) const;

    /// Loads a plan's items: resolve_tensor for all of them, the bytes, then commit_tensor for all of them,
    /// on this thread. Blocks; not from the reactor's thread. On an error the destinations hold an unknown
    /// mixture and commit_tensor is not called.
    ///
    /// Where the plan has an exchange, ranks wait for each other here, and the death or failure of one is the
    /// error of those that exchange with it, io_peer_lost. An exchange takes place once: a plan that is loaded
    /// again is loaded without others, on every rank.
    Result<LoadReport> read_data(const LoadPlan& plan, LoadPlanner& planner);

    /// The same without blocking: resolve_tensor here, on this thread; commit_tensor on the reactor's
    /// thread before the completion (std::exception_ptr, LoadReport). A std::future by default. This reader,
    /// the planner and the destinations must stay until then. Where there is no memory even for the completion itself,
    /// std::bad_alloc is thrown, or completed with at once.
    template <typename Token = boost::asio::use_future_t<>>
    auto async_read_data(const LoadPlan& plan, LoadPlanner& planner, Token&& token = {}) {
        return boost::asio::async_initiate<Token, void(std::exception_ptr, LoadReport)>(
            InitiateRead{this}, token, &plan, &planner);
    }

    /// Of a rank that got its plan and will not load it: ranks that exchange with it get `why` as their error
    /// instead of waiting. Nothing for a plan without an exchange. Any thread.
    void decline(const LoadPlan& plan, const std::string& why);

    /// Loads that have begun end with operation_canceled once what they have in flight has ended; their
    /// destinations must stay until then. One thread at a time uses a reader, for this call too.
    void cancel();

    /// `path`/model.safetensors.index.json
    std::string metadata_path() const;
    const std::string& path() const;
    const std::shared_ptr<Reactor>& reactor();
    /// __metadata__ of the files, by file name; after read_metadata.
    const std::map<std::string, std::vector<std::pair<std::string, std::string>>>&
    file_metadata() const;
    /// The save that wrote the checkpoint, after read_metadata; empty where there is no manifest.
    const std::string& attempt() const;

    struct Impl;

  private:
    using ReadHandler = std::move_only_function<void(std::exception_ptr, LoadReport)>;
    void start_read(const LoadPlan& plan, LoadPlanner& planner, ReadHandler handler);
    boost::asio::io_context::executor_type executor();

    struct InitiateRead {
        HuggingFaceStorageReader* reader;

        template <typename CompletionHandler>
        void operator()(CompletionHandler&& handler, const LoadPlan* plan,
                        LoadPlanner* planner) const {
            reader->start_read(*plan, *planner,
                               dispatched<std::exception_ptr, LoadReport>(
                                   std::forward<CompletionHandler>(handler), reader->executor()));
        }
    };

    std::unique_ptr<Impl> impl_;
};

} // namespace safering
