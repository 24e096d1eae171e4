// How ranks agree, see async_saver.hpp. Both conversations are led by rank 0:
//   save()      gather: every rank's plan -> scatter: its part of the layout, and which save it supersedes
//   the thread  scatter: the number of the save that is written now -> gather: results -> scatter: the outcome
// A rank enters the second one only while it has saves that have not ended, so nobody waits for saves that nobody
// asked for. Rank 0 alone decides between "begins" and "is superseded", under its lock.
#include <safering/async_saver.hpp>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>

#include <boost/asio/post.hpp>
#include <fmt/format.h>
#include <unistd.h>

#include "checkpoint/caught.hpp"
#include "checkpoint/rank_messages.hpp"
#include "checkpoint/shared_reactor.hpp"
#include "checkpoint/staged_copy.hpp"
#include "io/blocked_signals.hpp"
#include "io/staging_pool.hpp"

namespace safering {

using namespace checkpoint;

Collectives::~Collectives() = default;

Result<void> reserve_staging_memory(std::size_t bytes) {
    return io::StagingPool::of_process().reserve(bytes);
}
void release_staging_memory() {
    io::StagingPool::of_process().release();
}

namespace {

class OneRank final : public Collectives {
  public:
    std::uint32_t rank() const override { return 0; }
    std::uint32_t ranks() const override { return 1; }
    Result<std::vector<Bytes>> gather(Bytes own) override {
        std::vector<Bytes> all;
        all.push_back(std::move(own));
        return all;
    }
    Result<Bytes> scatter(std::vector<Bytes> parts) override { return std::move(parts.at(0)); }
};

// What the embedder's throw is an Error.
class NothingThrown final : public Collectives {
  public:
    explicit NothingThrown(std::shared_ptr<Collectives> ranks) : ranks_(std::move(ranks)) {}
    std::uint32_t rank() const override { return ranks_->rank(); }
    std::uint32_t ranks() const override { return ranks_->ranks(); }
    Result<std::vector<Bytes>> gather(Bytes own) override {
        return catching(operation, [&] { return ranks_->gather(std::move(own)); });
    }
    Result<Bytes> scatter(std::vector<Bytes> parts) override {
        return catching(operation, [&] { return ranks_->scatter(std::move(parts)); });
    }

  private:
    static constexpr const char* operation = "save: speak to the other ranks";
    std::shared_ptr<Collectives> ranks_;
};

std::shared_ptr<Collectives> ranks_of(std::shared_ptr<Collectives> given) {
    if (given)
        return std::make_shared<NothingThrown>(std::move(given));
    return std::make_shared<OneRank>();
}

using SaveHandler = std::move_only_function<void(std::exception_ptr, SaveReport)>;

struct Job {
    std::uint64_t number = 0;
    std::string path;
    std::unique_ptr<HuggingFaceStorageWriter> writer;
    SavePlan plan;
    /// Null once it has been written.
    std::shared_ptr<StagedCopy> staged;
    /// Why it will not be written.
    std::optional<Error> failed;
    bool canceled = false;
    /// Set when it has ended.
    std::optional<bool> saved;
    /// Empty where nobody waits for it.
    SaveHandler handler{};
};

// A job that has ended, of which nobody has heard so far.
struct Ended {
    std::shared_ptr<Job> job;
    Result<SaveReport> outcome;
};

Error canceled_error(const Job& job) {
    return {.code = std::make_error_code(std::errc::operation_canceled),
            .operation = "save",
            .file = job.path};
}

// The places of `kept` in `all`: what create_global_plan leaves is in the order that it had.
std::vector<std::uint32_t> positions_of(const std::vector<WriteItem>& kept,
                                        const std::vector<WriteItem>& all) {
    std::vector<std::uint32_t> positions;
    std::uint32_t at = 0;
    for (const WriteItem& item : kept) {
        while (at < all.size() && all[at] != item)
            ++at;
        SAFERING_ASSERT(at < all.size());
        positions.push_back(at++);
    }
    return positions;
}

} // namespace

struct AsyncSaver::Impl {
    AsyncSaverOptions options;
    SharedReactor reactor;
    std::shared_ptr<Collectives> foreground;
    std::shared_ptr<Collectives> background;
    std::uint32_t rank = 0;

    std::mutex mutex;
    std::condition_variable changed;
    // Asked for and not ended, by number. The thread works on `current`; at most one more waits.
    std::deque<std::shared_ptr<Job>> jobs;
    std::shared_ptr<Job> current;
    std::size_t ended = 0; // of which nobody has heard
    std::uint64_t last_number = 0;
    bool lifted = false;
    bool closing = false;
    std::optional<Error> broken; // the ranks have lost each other
    std::thread thread;
    const pid_t process = ::getpid();

    explicit Impl(AsyncSaverOptions given) : options(std::move(given)), reactor(options.reactor) {
        SAFERING_ASSERT(!options.foreground == !options.background);
        foreground = ranks_of(options.foreground);
        background = ranks_of(options.background);
        rank = foreground->rank();
        reactor.value(); // throws here and not on a thread
        const BlockedSignals blocked;
        thread = std::thread([this] { work(); });
    }
    bool forked() const { return ::getpid() != process; }
    ~Impl() {
        {
            const std::lock_guard lock(mutex);
            closing = true;
        }
        changed.notify_all();
        thread.join();
    }

    // On the caller's thread. The handler is moved from where it will be called.
    Result<void> save(std::string path, Result<SavePlan> plan, const Fill& fill,
                      SaveHandler& handler);
    Result<std::shared_ptr<Job>> begin(std::string path, Result<SavePlan> plan);
    Result<std::vector<Bytes>> lay_out(Job& job, const std::vector<Bytes>& local);
    Result<void> stage(Job& job, const std::function<Result<void>(Job&)>& copy);

    // On its own.
    void work();
    std::shared_ptr<Job> next();
    Result<std::shared_ptr<Job>> agree_on_next();
    Result<WriteResults> write(Job& job);
    Result<SaveReport> write_and_commit(Job& job);
    Result<SaveReport> commit(Job& job, const std::vector<Bytes>& gathered);

    // Under the lock.
    [[nodiscard]] Ended end(std::shared_ptr<Job> job, Result<SaveReport> outcome);
    [[nodiscard]] std::optional<Ended> supersede(std::uint64_t number);
    /// Without it: a handler is the embedder's, and with the job goes its attempt.
    void tell(Ended ended_job);
};

Ended AsyncSaver::Impl::end(std::shared_ptr<Job> job, Result<SaveReport> outcome) {
    job->staged.reset();
    std::erase(jobs, job);
    job->saved = outcome.has_value();
    ++ended;
    changed.notify_all();
    return {std::move(job), std::move(outcome)};
}

std::optional<Ended> AsyncSaver::Impl::supersede(std::uint64_t number) {
    const auto found = std::ranges::find(jobs, number, &Job::number);
    if (found == jobs.end())
        return std::nullopt;
    const std::shared_ptr<Job> job = *found;
    return end(job, std::unexpected(Error{
                        .code = Errc::save_superseded, .operation = "save", .file = job->path}));
}

void AsyncSaver::Impl::tell(Ended ended_job) {
    if (SaveHandler handler = std::move(ended_job.job->handler)) {
        if (ended_job.outcome)
            handler(nullptr, std::move(*ended_job.outcome));
        else
            handler(std::make_exception_ptr(Exception(std::move(ended_job.outcome.error()))), {});
    }
    ended_job.job.reset();
    const std::lock_guard lock(mutex);
    --ended;
    changed.notify_all();
}

// At rank 0: what each rank is told.
Result<std::vector<Bytes>> AsyncSaver::Impl::lay_out(Job& job, const std::vector<Bytes>& local) {
    std::vector<SavePlan> plans;
    for (std::size_t r = 0; r < local.size(); ++r) {
        auto bytes = unpack(local[r]);
        auto plan = bytes ? save_plan_from_bytes(*bytes)
                          : Result<SavePlan>(std::unexpected(std::move(bytes.error())));
        if (!plan)
            return std::unexpected(std::move(plan.error()));
        plans.push_back(std::move(*plan));
    }
    auto global = create_global_plan(std::move(plans));
    if (!global)
        return std::unexpected(std::move(global.error()));
    auto prepared = job.writer->prepare_global_plan(std::move(global->plans));
    if (!prepared)
        return std::unexpected(std::move(prepared.error()));
    std::uint64_t superseded = 0;
    std::optional<Ended> gone;
    {
        const std::lock_guard lock(mutex);
        for (const auto& waiting : jobs)
            if (waiting != current)
                superseded = waiting->number;
        gone = supersede(superseded);
    }
    if (gone)
        tell(std::move(*gone));
    std::vector<Bytes> parts;
    for (SavePlan& plan : *prepared)
        parts.push_back(checkpoint::to_bytes(BeginSave{superseded, std::move(plan)}));
    return parts;
}

Result<std::shared_ptr<Job>> AsyncSaver::Impl::begin(std::string path, Result<SavePlan> plan) {
    auto job = std::make_shared<Job>();
    job->path = std::move(path);
    job->writer =
        std::make_unique<HuggingFaceStorageWriter>(job->path, options.writer, reactor.value());
    if (plan)
        plan->rank = rank;
    else
        plan.error().operation += fmt::format(" on rank {}", rank);
    auto local = plan ? job->writer->prepare_local_plan(std::move(*plan)) : std::move(plan);
    auto gathered =
        foreground->gather(pack(local ? Result<Bytes>(safering::to_bytes(*local))
                                      : Result<Bytes>(std::unexpected(std::move(local.error())))));
    if (!gathered)
        return std::unexpected(std::move(gathered.error()));
    std::vector<Bytes> parts;
    if (rank == 0) {
        auto laid_out = lay_out(*job, *gathered);
        for (std::uint32_t r = 0; r < foreground->ranks(); ++r)
            parts.push_back(laid_out ? pack(std::move((*laid_out)[r]))
                                     : pack(std::unexpected(laid_out.error())));
    }
    auto part = foreground->scatter(std::move(parts));
    if (!part)
        return std::unexpected(std::move(part.error()));
    auto message = unpack(*part);
    if (!message)
        return std::unexpected(std::move(message.error()));
    auto begun = begin_save_from_bytes(*message);
    if (!begun)
        return std::unexpected(std::move(begun.error()));
    job->plan = std::move(begun->plan);
    std::optional<Ended> gone;
    {
        const std::lock_guard lock(mutex);
        job->number = ++last_number;
        gone = supersede(begun->superseded); // rank 0 has done so already
    }
    if (gone)
        tell(std::move(*gone));
    return job;
}

Result<void> AsyncSaver::Impl::stage(Job& job, const std::function<Result<void>(Job&)>& copy) {
    auto staged = StagedCopy::make(job.plan);
    if (!staged)
        return std::unexpected(std::move(staged.error()));
    job.staged = std::move(*staged);
    return copy(job);
}

// What this rank would write next, or null where nothing comes any more.
std::shared_ptr<Job> AsyncSaver::Impl::next() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [this] { return !jobs.empty() || closing; });
    if (jobs.empty())
        return nullptr;
    if (rank == 0) // decided; it is superseded no more
        current = jobs.back();
    return jobs.back();
}

Result<std::shared_ptr<Job>> AsyncSaver::Impl::agree_on_next() {
    const std::shared_ptr<Job> own = next();
    if (own == nullptr || background->ranks() == 1)
        return own;
    std::vector<Bytes> parts;
    if (rank == 0) {
        Bytes number(sizeof own->number);
        std::memcpy(number.data(), &own->number, number.size());
        parts.assign(background->ranks(), number);
    }
    auto part = background->scatter(std::move(parts));
    if (!part)
        return std::unexpected(std::move(part.error()));
    std::uint64_t number = 0;
    if (part->size() != sizeof number)
        return fail(Errc::plan_bad_bytes, "save", "rank 0 said no number of a save");
    std::memcpy(&number, part->data(), sizeof number);
    // Rank 0 may have copied its part sooner than this rank.
    std::unique_lock lock(mutex);
    const auto found = [&] { return std::ranges::find(jobs, number, &Job::number); };
    changed.wait(lock, [&] { return found() != jobs.end() || closing; });
    if (found() == jobs.end())
        return fail(Errc::io_stopped, "save", "the saver is being destroyed on this rank");
    return current = *found();
}

Result<WriteResults> AsyncSaver::Impl::write(Job& job) {
    std::future<WriteResults> written;
    {
        const std::lock_guard lock(mutex); // a writer is one thread's at a time
        if (!job.failed && job.canceled)
            job.failed = canceled_error(job);
        if (job.failed) {
            job.writer->decline(job.plan, job.failed->message());
            return std::unexpected(*job.failed);
        }
        written = job.writer->write_data(job.plan, *job.staged);
    }
    return written.get();
}

// At rank 0.
Result<SaveReport> AsyncSaver::Impl::commit(Job& job, const std::vector<Bytes>& gathered) {
    std::vector<WriteResults> results;
    std::optional<Error> error;
    for (const Bytes& packed : gathered) {
        auto bytes = unpack(packed);
        auto one = bytes ? write_results_from_bytes(*bytes)
                         : Result<WriteResults>(std::unexpected(std::move(bytes.error())));
        if (one)
            results.push_back(std::move(*one));
        // The cause, and not what follows from it on ranks that exchange with that one.
        else if (!error || error->code == Errc::io_peer_lost)
            error = std::move(one.error());
    }
    if (error) {
        // The first error is the one to report; a directory that stays is cleaned away later.
        (void)job.writer->abort();
        return std::unexpected(std::move(*error));
    }
    return job.writer->finish({}, std::move(results));
}

Result<SaveReport> AsyncSaver::Impl::write_and_commit(Job& job) {
    auto results = catching("write data", [&] { return write(job); });
    {
        const std::lock_guard lock(mutex);
        job.staged.reset();
    }
    auto gathered =
        background->gather(pack(results ? Result<Bytes>(safering::to_bytes(*results))
                                        : Result<Bytes>(std::unexpected(results.error()))));
    if (!gathered)
        return std::unexpected(std::move(gathered.error()));
    std::optional<Result<SaveReport>> own;
    std::vector<Bytes> parts;
    if (rank == 0) {
        own = commit(job, *gathered);
        parts.assign(background->ranks(),
                     pack(*own ? Result<Bytes>(checkpoint::to_bytes(**own))
                               : Result<Bytes>(std::unexpected(own->error()))));
    }
    auto part = background->scatter(std::move(parts));
    if (own)
        return std::move(*own); // rank 0 knows, whatever became of the others
    if (!part)
        return std::unexpected(std::move(part.error()));
    auto message = unpack(*part);
    if (!message)
        return std::unexpected(std::move(message.error()));
    auto report = save_report_from_bytes(*message);
    if (report)
        report->work = job.writer->work();
    return report;
}

void AsyncSaver::Impl::work() {
    for (;;) {
        auto job = agree_on_next();
        if (job && *job == nullptr)
            return;
        std::optional<Result<SaveReport>> outcome;
        if (job)
            outcome = write_and_commit(**job);
        std::vector<Ended> ends;
        {
            const std::lock_guard lock(mutex);
            current.reset();
            if (job) {
                ends.push_back(end(std::move(*job), std::move(*outcome)));
            } else { // nothing that comes after could be agreed on
                broken = job.error();
                while (!jobs.empty())
                    ends.push_back(end(jobs.front(), std::unexpected(*broken)));
            }
        }
        for (Ended& one : ends)
            tell(std::move(one));
        if (!job)
            return;
    }
}

AsyncSaver::AsyncSaver(AsyncSaverOptions options)
    : impl_(std::make_unique<Impl>(std::move(options))) {}
AsyncSaver::~AsyncSaver() {
    // The thread, and what it holds and waits for, stayed with the parent.
    if (impl_->forked())
        static_cast<void>(impl_.release());
}

// Whatever keeps this rank from saving, it takes part in what the ranks say: the others wait for it.
Result<void> AsyncSaver::Impl::save(std::string path, Result<SavePlan> plan, const Fill& fill,
                                    SaveHandler& handler) {
    if (forked())
        return std::unexpected(
            Error{.code = Errc::io_forked, .operation = "save", .file = std::move(path)});
    const std::vector<WriteItem> all = plan ? plan->items : std::vector<WriteItem>();
    {
        const std::lock_guard lock(mutex);
        if (broken)
            plan = std::unexpected(*broken);
    }
    auto begun = begin(std::move(path), std::move(plan));
    if (!begun)
        return std::unexpected(std::move(begun.error()));
    const std::shared_ptr<Job>& job = *begun;
    std::exception_ptr thrown;
    const auto staged = catching("copy", [&] {
        return stage(*job, [&](Job& staging) {
            try {
                return fill(positions_of(staging.plan.items, all), staging.staged->places());
            } catch (...) {
                thrown = std::current_exception();
                throw;
            }
        });
    });
    if (!staged) {
        // The other ranks hear of it when the save's turn has come.
        job->failed = staged.error();
        job->failed->operation = fmt::format("stage data of rank {}", rank);
        job->staged.reset();
    }
    if (!thrown)
        job->handler = std::move(handler);
    std::optional<Ended> lost;
    {
        const std::lock_guard lock(mutex);
        if (lifted)
            job->writer->lift_limits();
        jobs.push_back(job);
        if (broken)
            lost = end(job, std::unexpected(*broken));
        changed.notify_all();
    }
    if (lost)
        tell(std::move(*lost));
    if (thrown)
        std::rethrow_exception(thrown);
    return {};
}

Result<std::future<SaveReport>> AsyncSaver::save(std::string path, Result<SavePlan> plan,
                                                 const Fill& fill) {
    std::promise<SaveReport> promise;
    auto future = promise.get_future();
    SaveHandler handler = [promise = std::move(promise)](std::exception_ptr error,
                                                         SaveReport report) mutable {
        if (error)
            promise.set_exception(std::move(error));
        else
            promise.set_value(std::move(report));
    };
    if (auto begun = impl_->save(std::move(path), std::move(plan), fill, handler); !begun)
        return std::unexpected(std::move(begun.error()));
    return future;
}

Result<std::future<SaveReport>> AsyncSaver::save(std::string path, SavePlan plan,
                                                 SavePlanner& planner) {
    const Fill fill = filled_by(plan, planner);
    return save(std::move(path), Result<SavePlan>(std::move(plan)), fill);
}

AsyncSaver::Fill AsyncSaver::filled_by(const SavePlan& plan, SavePlanner& planner) const {
    return [rank = impl_->rank, all = plan.items, &planner](std::span<const std::uint32_t> items,
                                                            std::span<std::byte* const> places) {
        std::vector<WriteItem> kept;
        for (const std::uint32_t item : items)
            kept.push_back(all[item]);
        return copy_items(rank, kept, places, planner);
    };
}

void AsyncSaver::start_save(std::string path, Result<SavePlan> plan, const Fill& fill,
                            SaveHandler handler) {
    std::exception_ptr failed;
    try {
        return value_or_throw(impl_->save(std::move(path), std::move(plan), fill, handler));
    } catch (const std::exception&) {
        failed = std::current_exception();
    }
    if (impl_->forked()) // nobody runs the executor
        return handler(failed, {});
    boost::asio::post(executor(),
                      [handler = std::move(handler), failed]() mutable { handler(failed, {}); });
}

boost::asio::io_context::executor_type AsyncSaver::executor() {
    return impl_->reactor.value()->executor();
}

void AsyncSaver::cancel() {
    if (impl_->forked())
        return;
    const std::lock_guard lock(impl_->mutex);
    for (const auto& job : impl_->jobs) {
        job->canceled = true;
        job->writer->cancel();
    }
}

bool AsyncSaver::wait(std::chrono::steady_clock::time_point until) {
    if (impl_->forked())
        return true;
    std::unique_lock lock(impl_->mutex);
    const auto idle = [this] { return impl_->jobs.empty() && impl_->ended == 0; };
    if (until == std::chrono::steady_clock::time_point::max()) {
        impl_->changed.wait(lock, idle);
        return true;
    }
    return impl_->changed.wait_until(lock, until, idle);
}

void AsyncSaver::lift_limits() {
    if (impl_->forked())
        return;
    const std::lock_guard lock(impl_->mutex);
    impl_->lifted = true;
    for (const auto& job : impl_->jobs)
        job->writer->lift_limits();
}

AsyncSaver::Flushed AsyncSaver::emergency_flush(std::chrono::steady_clock::duration deadline) {
    if (impl_->forked())
        return {};
    const auto until = std::chrono::steady_clock::now() + deadline;
    std::vector<std::shared_ptr<Job>> asked;
    {
        const std::lock_guard lock(impl_->mutex);
        asked.assign(impl_->jobs.begin(), impl_->jobs.end());
    }
    lift_limits();
    if (!wait(until))
        cancel();
    Flushed flushed;
    const std::lock_guard lock(impl_->mutex);
    for (const auto& job : asked)
        (job->saved.value_or(false) ? flushed.saved : flushed.abandoned).push_back(job->path);
    return flushed;
}

} // namespace safering
