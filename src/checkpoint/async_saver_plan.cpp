// The conversation of save(), on the caller's thread: plans are gathered, parts of the layout scattered; then this rank's
// part is copied.
#include <exception>

#include <fmt/format.h>

#include "checkpoint/async_saver_impl.hpp"
#include "checkpoint/caught.hpp"

namespace safering {

using namespace checkpoint;

namespace {

constexpr const char* plan_phase = "plan the save";

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

// At rank 0: what each rank is told.
Result<std::vector<Bytes>> AsyncSaver::Impl::lay_out(SaveJob& job,
                                                     const std::vector<Bytes>& local) {
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
    std::optional<EndedSave> gone;
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

Result<std::shared_ptr<SaveJob>> AsyncSaver::Impl::begin(std::string path, Result<SavePlan> plan) {
    auto job = std::make_shared<SaveJob>();
    job->path = std::move(path);
    job->writer =
        std::make_unique<HuggingFaceStorageWriter>(job->path, options.writer, reactor.value());
    if (plan)
        plan->rank = rank;
    else
        plan.error().operation += fmt::format(" on rank {}", rank);
    auto local = plan ? job->writer->prepare_local_plan(std::move(*plan)) : std::move(plan);
    auto gathered = during(
        plan_phase,
        foreground->gather(pack(local ? Result<Bytes>(safering::to_bytes(*local))
                                      : Result<Bytes>(std::unexpected(std::move(local.error()))))));
    if (!gathered)
        lose(unplanned, gathered.error());
    if (!gathered && rank != 0)
        return std::unexpected(std::move(gathered.error()));
    std::vector<Bytes> parts;
    if (rank == 0) {
        auto laid_out = gathered ? lay_out(*job, *gathered)
                                 : Result<std::vector<Bytes>>(std::unexpected(gathered.error()));
        for (std::uint32_t r = 0; r < foreground->ranks(); ++r)
            parts.push_back(laid_out ? pack(std::move((*laid_out)[r]))
                                     : pack(std::unexpected(laid_out.error())));
    }
    auto part = during(plan_phase, foreground->scatter(std::move(parts)));
    if (!part)
        lose(unplanned, part.error());
    if (!gathered) // whatever became of telling the others
        return std::unexpected(std::move(gathered.error()));
    if (!part)
        return std::unexpected(std::move(part.error()));
    auto message = unpack(*part);
    if (!message)
        return std::unexpected(std::move(message.error()));
    auto begun = begin_save_from_bytes(*message);
    if (!begun)
        return std::unexpected(std::move(begun.error()));
    job->plan = std::move(begun->plan);
    std::optional<EndedSave> gone;
    {
        const std::lock_guard lock(mutex);
        job->number = ++last_number;
        gone = supersede(begun->superseded); // rank 0 has done so already
    }
    if (gone)
        tell(std::move(*gone));
    return job;
}

Result<void> AsyncSaver::Impl::stage(SaveJob& job,
                                     const std::function<Result<void>(SaveJob&)>& copy) {
    auto staged = StagedCopy::make(job.plan);
    if (!staged)
        return std::unexpected(std::move(staged.error()));
    job.staged = std::move(*staged);
    return copy(job);
}

// Whatever keeps this rank from saving, it takes part in what the ranks say as long as they understand each other: the
// others wait for it.
Result<void> AsyncSaver::Impl::save(std::string path, Result<SavePlan> plan, const Fill& fill,
                                    SaveHandler& handler) {
    if (forked())
        return std::unexpected(
            Error{.code = Errc::io_forked, .operation = "save", .file = std::move(path)});
    const std::vector<WriteItem> all = plan ? plan->items : std::vector<WriteItem>();
    {
        const std::lock_guard lock(mutex);
        if (unplanned) // what is said there might be the answer to something else
            return std::unexpected(*unplanned);
        if (broken)
            plan = std::unexpected(*broken);
    }
    auto begun = begin(std::move(path), std::move(plan));
    if (!begun)
        return std::unexpected(std::move(begun.error()));
    const std::shared_ptr<SaveJob>& job = *begun;
    std::exception_ptr thrown;
    const auto staged = catching("copy", [&] {
        return stage(*job, [&](SaveJob& staging) {
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
    std::optional<EndedSave> lost;
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

} // namespace safering
