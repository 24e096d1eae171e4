// How ranks agree, see async_saver.hpp. Both conversations are led by rank 0:
//   save()      gather: every rank's plan -> scatter: its part of the layout, and which save it supersedes
//   the thread  scatter: the number of the save that is written now -> gather: results -> scatter: the outcome
// A rank enters the second one only while it has saves that have not ended, so nobody waits for saves that nobody
// asked for. Rank 0 alone decides between "begins" and "is superseded", under its lock.
#include <safering/async_saver.hpp>

#include <algorithm>

#include "checkpoint/async_saver_impl.hpp"
#include "checkpoint/caught.hpp"
#include "checkpoint/collectives.hpp"
#include "checkpoint/deliver.hpp"
#include "io/blocked_signals.hpp"
#include "io/staging_pool.hpp"

namespace safering {

using namespace checkpoint;

Result<void> reserve_staging_memory(std::size_t bytes) {
    return io::StagingPool::of_process().reserve(bytes);
}
void release_staging_memory() {
    io::StagingPool::of_process().release();
}

AsyncSaver::Impl::Impl(AsyncSaverOptions given)
    : options(std::move(given)), reactor(options.reactor) {
    SAFERING_ASSERT(!options.foreground == !options.background);
    foreground = ranks_of(options.foreground);
    background = ranks_of(options.background);
    rank = foreground->rank();
    reactor.value(); // throws here and not on a thread
    const BlockedSignals blocked;
    unsaid.resize(rank == 0 ? foreground->ranks() : 0);
    thread = std::thread([this] {
        work();
        if (alone) {
            thread.detach();
            delete this;
        }
    });
}

AsyncSaver::Impl::~Impl() {
    {
        const std::lock_guard lock(mutex);
        closing = true;
    }
    changed.notify_all();
    if (thread.joinable())
        thread.join();
}

EndedSave AsyncSaver::Impl::end(std::shared_ptr<SaveJob> job, Result<SaveReport> outcome) {
    job->staged.reset();
    std::erase(jobs, job);
    job->saved = outcome.has_value();
    ++ended;
    changed.notify_all();
    return {std::move(job), std::move(outcome)};
}

std::optional<EndedSave> AsyncSaver::Impl::supersede(std::uint64_t number) {
    const auto found = std::ranges::find(jobs, number, &SaveJob::number);
    if (found == jobs.end())
        return std::nullopt;
    Error error{.code = Errc::save_superseded, .operation = "save"};
    (void)had_memory([&] { error.file = (*found)->path; });
    return end(*found, std::unexpected(std::move(error)));
}

void AsyncSaver::Impl::tell(EndedSave ended_job) {
    if (SaveHandler handler = std::move(ended_job.job->handler)) {
        if (ended_job.outcome)
            handler(nullptr, std::move(*ended_job.outcome));
        else
            handler(exception_of(std::move(ended_job.outcome.error())), {});
    }
    ended_job.job.reset();
    const std::lock_guard lock(mutex);
    --ended;
    changed.notify_all();
}

AsyncSaver::AsyncSaver(AsyncSaverOptions options)
    : impl_(std::make_unique<Impl>(std::move(options))) {}
AsyncSaver::~AsyncSaver() {
    // The thread, and what it holds and waits for, stayed with the parent.
    if (impl_->forked())
        static_cast<void>(impl_.release());
    // Whoever holds it last may be what it calls on its own thread, as Python's collector is; a thread cannot wait for
    // its own end.
    else if (std::this_thread::get_id() == impl_->thread.get_id()) {
        Impl& left = *impl_.release();
        left.alone = true;
        const std::lock_guard lock(left.mutex);
        left.closing = true;
    }
}

Result<std::future<SaveReport>> AsyncSaver::save(std::string path, Result<SavePlan> plan,
                                                 const Fill& fill) {
    // The future goes before a promise that was not kept: that would want memory to tell it.
    SaveHandler handler;
    std::future<SaveReport> future;
    const bool made = had_memory([&] {
        auto promise = std::make_unique<std::promise<SaveReport>>();
        future = promise->get_future();
        handler = [promise = std::move(promise)](std::exception_ptr error, SaveReport report) {
            if (error)
                promise->set_exception(std::move(error));
            else
                promise->set_value(std::move(report));
        };
    });
    if (!made)
        plan = std::unexpected(out_of_memory());
    if (auto begun = impl_->save(std::move(path), std::move(plan), fill, handler); !begun)
        return std::unexpected(std::move(begun.error()));
    return future;
}

Result<std::future<SaveReport>> AsyncSaver::save(std::string path, SavePlan plan,
                                                 SavePlanner& planner) {
    Fill fill;
    Result<SavePlan> given(std::move(plan));
    if (!had_memory([&] { fill = filled_by(*given, planner); }))
        given = std::unexpected(out_of_memory());
    return save(std::move(path), std::move(given), fill);
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
    auto delivery = Delivery<SaveReport>::make(executor(), handler);
    if (!delivery)
        plan = std::unexpected(out_of_memory());
    SaveHandler nobody;
    SaveHandler& told = delivery ? delivery->handler() : nobody;
    Result<void> begun;
    std::exception_ptr thrown;
    try {
        begun = impl_->save(std::move(path), std::move(plan), fill, told);
    } catch (const std::exception&) {
        thrown = std::current_exception();
    }
    if (delivery && thrown)
        Delivery<SaveReport>::end(std::move(delivery), std::move(thrown));
    else if (delivery && !begun)
        Delivery<SaveReport>::end(std::move(delivery), std::unexpected(std::move(begun.error())));
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
    std::vector<std::shared_ptr<SaveJob>> asked;
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
