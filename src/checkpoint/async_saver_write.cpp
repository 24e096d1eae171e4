// The conversation of the saver's own thread: which save is written now, what was written, how it ended.
#include <algorithm>
#include <cstring>

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

} // namespace

// What this rank would write next, or null where nothing comes any more.
std::shared_ptr<SaveJob> AsyncSaver::Impl::next() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [this] { return !jobs.empty() || closing; });
    if (jobs.empty())
        return nullptr;
    if (rank == 0) // decided; it is superseded no more
        current = jobs.back();
    return jobs.back();
}

Result<std::shared_ptr<SaveJob>> AsyncSaver::Impl::agree_on_next() {
    const std::shared_ptr<SaveJob> own = next();
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
    const auto found = [&] { return std::ranges::find(jobs, number, &SaveJob::number); };
    changed.wait(lock, [&] { return found() != jobs.end() || closing; });
    if (found() == jobs.end())
        return fail(Errc::io_stopped, "save", "the saver is being destroyed on this rank");
    return current = *found();
}

Result<WriteResults> AsyncSaver::Impl::write(SaveJob& job) {
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
Result<SaveReport> AsyncSaver::Impl::commit(SaveJob& job, const std::vector<Bytes>& gathered) {
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

Result<SaveReport> AsyncSaver::Impl::write_and_commit(SaveJob& job) {
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
        std::vector<EndedSave> ends;
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
        for (EndedSave& one : ends)
            tell(std::move(one));
        if (!job)
            return;
    }
}

} // namespace safering
