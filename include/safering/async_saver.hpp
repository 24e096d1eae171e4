// AsyncSaver: checkpoints in the background of a training loop.
//
//   1. save() plans together with the other ranks, copies this rank's part into memory that lies as the files
//      do, and returns: the loop pays for one copy of its memory and goes on.
//   2. A thread writes what was copied, straight from there, within the limits, and commits it. One save is
//      written at a time. One more may wait; a third takes the place of the one that waits, which ends in
//      save_superseded: the newest wins, and memory for two copies is the most that is used.
//   3. Rank 0 decides which save is written next and which is superseded, so that all ranks agree.
// A save that fails, on whatever rank, fails on all, and leaves an older checkpoint as it was.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <future>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <boost/asio/async_result.hpp>

#include <safering/completion.hpp>
#include <safering/storage_writer.hpp>

namespace safering {

/// Carries bytes between the ranks of a job; the embedder's own transport (MPI, sockets, a process group). All
/// ranks make the same calls in the same order; a call may wait for the others, for as long as a save takes. One
/// thread at a time uses an instance. What they throw counts as an Error.
/// How long a call waits for a rank that says nothing is the transport's business: it returns an Error then, best one
/// that names the rank. Rank 0 tells the others where a call of it fails; every later save fails likewise, as nobody
/// knows what the others have heard: make new savers on all ranks.
class SAFERING_API Collectives {
  public:
    virtual ~Collectives();
    virtual std::uint32_t rank() const = 0;
    virtual std::uint32_t ranks() const = 0;
    /// At rank 0 what each rank gave, by rank; elsewhere nothing.
    virtual Result<std::vector<std::vector<std::byte>>> gather(std::vector<std::byte> own) = 0;
    /// Rank 0 gives a part for each rank, by rank, the others nothing; every rank gets its own.
    virtual Result<std::vector<std::byte>> scatter(std::vector<std::vector<std::byte>> parts) = 0;
};

/// Memory for `bytes` of copies is made and touched now, so that the first save finds it warm: fresh pages cost
/// more than the copy itself. Blocks. Errors: ENOMEM.
SAFERING_API Result<void> reserve_staging_memory(std::size_t bytes);
/// Gives back what no copy uses.
SAFERING_API void release_staging_memory();

struct AsyncSaverOptions {
    /// Of every save.
    WriterOptions writer{};
    /// Null: one is made, with the defaults: a saver has no path of its own. create_tuned_reactor() makes one for a path.
    std::shared_ptr<Reactor> reactor{};
    /// For the threads that call save(), and for the saver's own thread; null: there is one rank. They carry two
    /// conversations that run at the same time, so they must not be one.
    std::shared_ptr<Collectives> foreground{};
    std::shared_ptr<Collectives> background{};
};

/// In a forked child of its process a saver has no saves, and save() ends in io_forked: make another one there.
class SAFERING_API AsyncSaver {
  public:
    /// Puts the bytes of items[i], dense and row-major, at places[i]. On the thread that calls save(). Its Error
    /// fails the save on all ranks; so does what it throws, which save() throws on.
    using Fill = std::function<Result<void>(std::span<const std::uint32_t> items,
                                            std::span<std::byte* const> places)>;

    explicit AsyncSaver(AsyncSaverOptions options = {});
    /// Waits for every save.
    ~AsyncSaver();
    AsyncSaver(const AsyncSaver&) = delete;
    AsyncSaver& operator=(const AsyncSaver&) = delete;

    /// All ranks, in the same order. `path`: the checkpoint's directory, whose parent exists. `plan`: the rank's
    /// own, as create_local_plan makes it (replicas are shared out here). `planner` gives the memory, which is
    /// the caller's again when this returns. The future's get() gives the report or throws Exception:
    /// save_superseded, operation_canceled, or what failed, naming rank and file.
    /// Errors at once, on all ranks, where the plans do not fit together or the attempt cannot be begun. Memory that ends
    /// on the way is the error not_enough_memory; std::bad_alloc is thrown where there was none for that.
    Result<std::future<SaveReport>> save(std::string path, SavePlan plan, SavePlanner& planner);
    /// The same for memory that is not a TensorView's (a device's): `fill` is told which of the plan's items this
    /// rank writes, by index, and where to put them. A rank that has no plan gives its Error, and all ranks get it.
    Result<std::future<SaveReport>> save(std::string path, Result<SavePlan> plan, const Fill& fill);

    /// save() with a Boost.Asio completion token for (std::exception_ptr, SaveReport), a std::future by default. Plans
    /// and copies on the calling thread as well, which must not be the reactor's; what save() returns as an Error or
    /// throws is the exception here. A handler runs on its executor, or else on the reactor's thread, where it must
    /// not block; the planner and what `fill` refers to must stay until this has returned, with use_awaitable until it
    /// has been awaited.
    ///
    /// Throws std::bad_alloc, before the ranks speak, where there is no memory for the token; of several ranks the others
    /// wait then as for one that has not called. save() speaks to them whether there is memory or not.
    ///
    ///     std::future<SaveReport> saved = saver.async_save(path, plan, planner);
    ///     saver.async_save(path, plan, planner, [](std::exception_ptr error, SaveReport report) {});
    ///     SaveReport report = co_await saver.async_save(path, plan, planner, boost::asio::use_awaitable);
    template <typename Token = boost::asio::use_future_t<>>
    auto async_save(std::string path, SavePlan plan, SavePlanner& planner, Token&& token = {}) {
        Fill fill = filled_by(plan, planner);
        return async_save(std::move(path), Result<SavePlan>(std::move(plan)), std::move(fill),
                          std::forward<Token>(token));
    }
    template <typename Token = boost::asio::use_future_t<>>
    auto async_save(std::string path, Result<SavePlan> plan, Fill fill, Token&& token = {}) {
        return boost::asio::async_initiate<Token, void(std::exception_ptr, SaveReport)>(
            InitiateSave{this}, token, std::move(path), std::move(plan), std::move(fill));
    }

    /// Ends what is written and what waits, on all ranks, with operation_canceled, if the commit has not begun.
    /// Does not wait. Any thread; on one rank or on several.
    void cancel();
    /// Until every save has ended, or until then; whether all have. Any thread.
    bool wait(
        std::chrono::steady_clock::time_point until = std::chrono::steady_clock::time_point::max());

    /// Saves that had not ended when emergency_flush was called, by path.
    struct Flushed {
        std::vector<std::string> saved;
        /// Failed, superseded, or not whole when the time was up. An older checkpoint is as it was.
        std::vector<std::string> abandoned;
    };
    /// For SIGTERM (on a thread, not inside the handler): lifts the limits of all saves for good, waits for them,
    /// and when the time is up cancels those that are left; returns by then. On every rank.
    Flushed emergency_flush(std::chrono::steady_clock::duration deadline);
    /// Lifts the limits of all saves for good.
    void lift_limits();

    struct Impl;

  private:
    using SaveHandler = std::move_only_function<void(std::exception_ptr, SaveReport)>;
    Fill filled_by(const SavePlan& plan, SavePlanner& planner) const;
    void start_save(std::string path, Result<SavePlan> plan, const Fill& fill, SaveHandler handler);
    boost::asio::io_context::executor_type executor();

    struct InitiateSave {
        AsyncSaver* saver;

        template <typename CompletionHandler>
        void operator()(CompletionHandler&& handler, std::string path, Result<SavePlan> plan,
                        const Fill& fill) const {
            saver->start_save(std::move(path), std::move(plan), fill,
                              dispatched<std::exception_ptr, SaveReport>(
                                  std::forward<CompletionHandler>(handler), saver->executor()));
        }
    };

    std::unique_ptr<Impl> impl_;
};

} // namespace safering
