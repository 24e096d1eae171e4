// An AsyncSaver from inside: its saves, its two conversations, and the thread that has one of them.
#pragma once

#include <condition_variable>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <sys/types.h>
#include <unistd.h>

#include <safering/async_saver.hpp>

#include "checkpoint/rank_messages.hpp"
#include "checkpoint/shared_reactor.hpp"
#include "checkpoint/staged_copy.hpp"
#include "out_of_memory.hpp"

namespace safering {

namespace checkpoint {

using SaveHandler = std::move_only_function<void(std::exception_ptr, SaveReport)>;

/// A save that was asked for.
struct SaveJob {
    std::uint64_t number = 0;
    std::string path;
    std::unique_ptr<HuggingFaceStorageWriter> writer;
    SavePlan plan;
    /// What rank 0 has said of it, until the plan in it has been read.
    Bytes said;
    /// What rank 0 will say, to each rank: that its turn has come, and how it ended.
    std::vector<Bytes> turn;
    std::vector<Bytes> outcome;
    /// Null once it has been written.
    std::shared_ptr<StagedCopy> staged;
    /// Why it will not be written.
    std::optional<Error> failed;
    bool canceled = false;
    /// Set when it has ended.
    std::optional<bool> saved;
    /// Empty where nobody waits for it.
    SaveHandler handler{};

    /// Out of what was said, if it has not been read; again where there was no memory for it.
    Result<void> read_plan();
};
/// A list, so that one which the ranks have agreed on gets its place without memory.
using SaveJobs = std::list<std::shared_ptr<SaveJob>>;

/// One that has ended, of which nobody has heard so far.
struct EndedSave {
    std::shared_ptr<SaveJob> job;
    Result<SaveReport> outcome;
};

/// What the ranks were about when one of them was lost.
template <typename Value>
Result<Value> during(const char* phase, Result<Value> said) {
    if (!said)
        (void)had_memory(
            [&] { said.error().operation = fmt::format("{}: {}", phase, said.error().operation); });
    return said;
}

} // namespace checkpoint

struct AsyncSaver::Impl {
    AsyncSaverOptions options;
    checkpoint::SharedReactor reactor;
    std::shared_ptr<Collectives> foreground;
    std::shared_ptr<Collectives> background;
    std::uint32_t rank = 0;

    std::mutex mutex;
    std::condition_variable changed;
    // Asked for and not ended, by number. The thread works on `current`; at most one more waits.
    checkpoint::SaveJobs jobs;
    std::shared_ptr<checkpoint::SaveJob> current;
    std::size_t ended = 0; // of which nobody has heard
    std::uint64_t last_number = 0;
    // At rank 0, for what it says in save() when it has no memory to say more; the caller's thread alone.
    std::vector<checkpoint::Bytes> unsaid;
    bool lifted = false;
    bool closing = false;
    // The ranks have lost each other: in the saver's own conversation, and in that of save().
    std::optional<Error> broken;
    std::optional<Error> unplanned;
    std::thread thread;
    // It ends all when it ends; its own.
    bool alone = false;
    const pid_t process = ::getpid();

    explicit Impl(AsyncSaverOptions given);
    ~Impl();
    bool forked() const { return ::getpid() != process; }

    // On the caller's thread. The handler is moved from where it will be called.
    Result<void> save(std::string path, Result<SavePlan> plan, const Fill& fill,
                      SaveHandler& handler);
    std::shared_ptr<checkpoint::SaveJob> make_job(std::string path);
    Result<void> begin(const checkpoint::SaveJobs& own, Result<SavePlan> plan);
    Result<std::vector<checkpoint::Bytes>> lay_out(const checkpoint::SaveJobs& own,
                                                   const std::vector<checkpoint::Bytes>& local);
    std::vector<checkpoint::Bytes> say(Result<std::vector<checkpoint::Bytes>> laid_out);
    Result<void> hear(const checkpoint::SaveJobs& own, checkpoint::Bytes said);
    Result<void> stage(checkpoint::SaveJob& job,
                       const std::function<Result<void>(checkpoint::SaveJob&)>& copy);

    // On its own.
    void work();
    Result<std::shared_ptr<checkpoint::SaveJob>> next();
    Result<std::shared_ptr<checkpoint::SaveJob>> agree_on_next();
    Result<WriteResults> write(checkpoint::SaveJob& job);
    Result<SaveReport> write_and_commit(checkpoint::SaveJob& job);
    Result<SaveReport> commit(checkpoint::SaveJob& job,
                              const std::vector<checkpoint::Bytes>& gathered);
    Result<SaveReport> give_up(checkpoint::SaveJob& job, Error error);
    Result<SaveReport> hear_of_commit(checkpoint::SaveJob& job,
                                      Result<checkpoint::Bytes> said) const;
    /// Whoever did not hear one answer would take the next one for it.
    void lose(std::optional<Error>& conversation, const Error& error);

    // Under the lock.
    [[nodiscard]] checkpoint::EndedSave end(std::shared_ptr<checkpoint::SaveJob> job,
                                            Result<SaveReport> outcome);
    [[nodiscard]] std::optional<checkpoint::EndedSave> supersede(std::uint64_t number);
    /// Without it: a handler is the embedder's, and with the job goes its attempt.
    void tell(checkpoint::EndedSave ended_job);
};

} // namespace safering
