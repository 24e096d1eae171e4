// The conversation of the saver's own thread: which save is written now, what was written, how it ended.
#include <algorithm>

#include "checkpoint/async_saver_impl.hpp"
#include "checkpoint/caught.hpp"

namespace safering {

using namespace checkpoint;

namespace {

Error canceled_error(const SaveJob& job) {
    return {.code = std::make_error_code(std::errc::operation_canceled),
            .operation = "save",
            .file = job.path};
}

// Of several ranks' errors the cause tells more than that somebody lost patience, or that a partner in an exchange went.
enum class Weight { partner_lost, canceled, cause };

Weight weight_of(const Error& error) {
    if (error.code == Errc::io_peer_lost)
        return Weight::partner_lost;
    return error.code == std::errc::operation_canceled ? Weight::canceled : Weight::cause;
}

} // namespace

// What this rank would write next, or null where nothing comes any more.
Result<std::shared_ptr<SaveJob>> AsyncSaver::Impl::next() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [this] { return !jobs.empty() || closing || broken; });
    if (broken)
        return std::unexpected(copy_of(*broken));
    if (jobs.empty())
        return nullptr;
    if (rank == 0) // decided; it is superseded no more
        current = jobs.back();
    return jobs.back();
}

Result<std::shared_ptr<SaveJob>> AsyncSaver::Impl::agree_on_next() {
    auto next_own = next();
    if (!next_own || *next_own == nullptr || background->ranks() == 1)
        return next_own;
    const std::shared_ptr<SaveJob> own = std::move(*next_own);
    for (Bytes& part : own->turn)
        set_number(part, own->number);
    auto part = during("begin to write", background->scatter(std::move(own->turn)));
    if (!part && rank == 0) { // those that have heard of it begin, and are told at its end
        lose(broken, part.error());
        own->failed = std::move(part.error());
        return own;
    }
    if (!part)
        return std::unexpected(std::move(part.error()));
    const auto number = take_number(*part);
    if (!number)
        return fail(Errc::plan_bad_bytes, "save", "rank 0 said no number of a save");
    // Rank 0 may have copied its part sooner than this rank.
    std::unique_lock lock(mutex);
    const auto found = [&] { return std::ranges::find(jobs, *number, &SaveJob::number); };
    changed.wait(lock, [&] { return found() != jobs.end() || closing || unplanned; });
    if (const auto job = found(); job != jobs.end())
        return current = *job;
    if (unplanned) // it will not be planned here
        return std::unexpected(copy_of(*unplanned));
    return fail(Errc::io_stopped, "save", "the saver is being destroyed on this rank");
}

Result<WriteResults> AsyncSaver::Impl::write(SaveJob& job) {
    std::future<WriteResults> written;
    const auto begun = [&] {
        const std::lock_guard lock(mutex); // a writer is one thread's at a time
        return telling(
            [&]() -> Result<void> {
                if (auto known = job.read_plan(); !known) // its partners want to be told
                    return known;
                if (!job.failed && job.canceled)
                    job.failed = canceled_error(job);
                if (job.failed)
                    return std::unexpected(*job.failed);
                written = job.writer->write_data(job.plan, *job.staged);
                return {};
            },
            [&](const std::string& why) { job.writer->decline(job.plan, why); });
    }();
    if (!begun)
        return std::unexpected(begun.error());
    return written.get();
}

// At rank 0.
Result<SaveReport> AsyncSaver::Impl::commit(SaveJob& job, const std::vector<Bytes>& gathered) {
    std::vector<WriteResults> results;
    std::optional<Error> error;
    for (const Bytes& packed : gathered) {
        auto bytes = unpack(packed);
        auto one = bytes ? write_results_from_bytes(*bytes)
                         : Result<WriteResults>(std::unexpected(std::move(bytes.error())));
        if (one)
            results.push_back(std::move(*one));
        else if (!error || weight_of(*error) < weight_of(one.error()))
            error = std::move(one.error());
    }
    return error ? give_up(job, std::move(*error)) : job.writer->finish({}, std::move(results));
}

Result<SaveReport> AsyncSaver::Impl::give_up(SaveJob& job, Error error) {
    // The first error is the one to report; a directory that stays is cleaned away later.
    (void)job.writer->abort();
    return std::unexpected(std::move(error));
}

void AsyncSaver::Impl::lose(std::optional<Error>& conversation, const Error& error) {
    const std::lock_guard lock(mutex);
    if (!conversation && background->ranks() > 1) // one rank understands itself
        conversation = copy_of(error);
    changed.notify_all();
}

Result<SaveReport> AsyncSaver::Impl::write_and_commit(SaveJob& job) {
    auto results = catching("write data", [&] { return write(job); });
    {
        const std::lock_guard lock(mutex);
        job.staged.reset();
    }
    const auto said = or_out_of_memory([&] {
        return results ? Result<Bytes>(safering::to_bytes(*results))
                       : Result<Bytes>(std::unexpected(results.error()));
    });
    auto gathered = during("hear what was written", background->gather(pack(said)));
    if (!gathered)
        lose(broken, gathered.error());
    if (!gathered && rank != 0)
        return std::unexpected(std::move(gathered.error()));
    std::optional<Result<SaveReport>> own;
    if (rank == 0) {
        if (gathered)
            own = catching("save", [&] { return commit(job, *gathered); });
        else
            own = give_up(job, !results && weight_of(results.error()) == Weight::cause
                                   ? std::move(results.error())
                                   : std::move(gathered.error()));
        const auto outcome = or_out_of_memory([&] {
            return *own ? Result<Bytes>(checkpoint::to_bytes(**own))
                        : Result<Bytes>(std::unexpected(own->error()));
        });
        for (Bytes& part : job.outcome)
            part = pack(outcome);
    }
    auto part = during("hear of the commit", background->scatter(std::move(job.outcome)));
    if (!part)
        lose(broken, part.error());
    if (own)
        return std::move(*own); // rank 0 knows, whatever became of the others
    return hear_of_commit(job, std::move(part));
}

Result<SaveReport> AsyncSaver::Impl::hear_of_commit(SaveJob& job, Result<Bytes> said) const {
    return or_out_of_memory([&]() -> Result<SaveReport> {
        auto message = said ? unpack(*said) : std::move(said);
        if (!message)
            return std::unexpected(std::move(message.error()));
        auto report = save_report_from_bytes(*message);
        if (report)
            report->work = job.writer->work();
        return report;
    });
}

void AsyncSaver::Impl::work() {
    for (;;) {
        auto job = agree_on_next();
        if (job && *job == nullptr)
            return;
        std::optional<Result<SaveReport>> outcome;
        if (job)
            outcome = write_and_commit(**job);
        std::unique_lock lock(mutex);
        current.reset();
        if (job) {
            EndedSave ended_job = end(std::move(*job), std::move(*outcome));
            lock.unlock();
            tell(std::move(ended_job));
            continue;
        }
        if (!broken)
            broken = copy_of(job.error());
        while (!jobs.empty()) { // nothing that comes after could be agreed on
            EndedSave ended_job = end(jobs.front(), std::unexpected(copy_of(*broken)));
            lock.unlock();
            tell(std::move(ended_job));
            lock.lock();
        }
        return;
    }
}

} // namespace safering
