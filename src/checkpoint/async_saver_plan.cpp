// The conversation of save(), on the caller's thread: plans are gathered, parts of the layout scattered; then this rank's
// part is copied.
#include <algorithm>
#include <exception>
#include <utility>

#include <fmt/format.h>

#include "checkpoint/async_saver_impl.hpp"
#include "checkpoint/caught.hpp"

namespace safering {

using namespace checkpoint;

namespace {

constexpr const char* plan_phase = "plan the save";
// In the place of the save that another one supersedes.
constexpr std::uint64_t nothing_begins = ~std::uint64_t{0};

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

// What the ranks have agreed on takes place on each of them, so that all of it is made before they speak.
std::shared_ptr<SaveJob> AsyncSaver::Impl::make_job(std::string path) {
    auto job = std::make_shared<SaveJob>();
    job->path = std::move(path);
    job->writer =
        std::make_unique<HuggingFaceStorageWriter>(job->path, options.writer, reactor.value());
    if (rank == 0) {
        job->turn.assign(background->ranks(), Bytes(sizeof job->number));
        job->outcome.resize(background->ranks());
    }
    return job;
}

Result<void> SaveJob::read_plan() {
    return or_out_of_memory([this]() -> Result<void> {
        if (said.empty())
            return {};
        auto bytes = unpack(said);
        if (!bytes)
            return std::unexpected(std::move(bytes.error()));
        auto read = save_plan_from_bytes(*bytes);
        if (!read)
            return std::unexpected(std::move(read.error()));
        plan = std::move(*read);
        said = {};
        return {};
    });
}

// At rank 0: what each rank is told, but for the save that this one supersedes.
Result<std::vector<Bytes>> AsyncSaver::Impl::lay_out(const SaveJobs& own,
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
    auto prepared = own.front()->writer->prepare_global_plan(std::move(global->plans));
    if (!prepared)
        return std::unexpected(std::move(prepared.error()));
    std::vector<Bytes> parts;
    for (const SavePlan& plan : *prepared)
        parts.push_back(with_number(pack(safering::to_bytes(plan)), 0));
    if (std::ranges::any_of(parts, &Bytes::empty))
        return std::unexpected(out_of_memory());
    return parts;
}

// At rank 0. From the decision on, which is made here, nothing wants for memory.
std::vector<Bytes> AsyncSaver::Impl::say(Result<std::vector<Bytes>> laid_out) {
    if (!laid_out) {
        std::vector<Bytes> parts = std::exchange(unsaid, {});
        for (Bytes& part : parts)
            part = with_number(pack(std::unexpected(copy_of(laid_out.error()))), nothing_begins);
        return parts;
    }
    std::optional<EndedSave> gone;
    {
        const std::lock_guard lock(mutex);
        std::uint64_t superseded = 0;
        for (const auto& waiting : jobs)
            if (waiting != current)
                superseded = waiting->number;
        for (Bytes& part : *laid_out)
            set_number(part, superseded);
        gone = supersede(superseded);
    }
    if (gone)
        tell(std::move(*gone));
    return std::move(*laid_out);
}

Result<void> AsyncSaver::Impl::hear(const SaveJobs& own, Bytes said) {
    const std::uint64_t superseded = take_number(said).value_or(nothing_begins);
    if (superseded == nothing_begins) {
        auto why = unpack(said);
        return why ? fail(Errc::plan_bad_bytes, "save", "rank 0 said what makes no sense here")
                   : Result<void>(std::unexpected(std::move(why.error())));
    }
    SAFERING_ASSERT(!own.empty()); // else this rank said so, and nothing begins
    own.front()->said = std::move(said);
    std::optional<EndedSave> gone;
    {
        const std::lock_guard lock(mutex);
        own.front()->number = ++last_number;
        gone = supersede(superseded); // rank 0 has done so already
    }
    if (gone)
        tell(std::move(*gone));
    return {};
}

Result<void> AsyncSaver::Impl::begin(const SaveJobs& own, Result<SavePlan> plan) {
    if (plan)
        plan->rank = rank;
    else
        (void)had_memory([&] { plan.error().operation += fmt::format(" on rank {}", rank); });
    const auto local = or_out_of_memory([&]() -> Result<Bytes> {
        auto prepared =
            plan ? own.front()->writer->prepare_local_plan(std::move(*plan)) : std::move(plan);
        if (!prepared)
            return std::unexpected(std::move(prepared.error()));
        return safering::to_bytes(*prepared);
    });
    auto gathered = during(plan_phase, foreground->gather(pack(local)));
    if (!gathered)
        lose(unplanned, gathered.error());
    if (!gathered && rank != 0)
        return std::unexpected(std::move(gathered.error()));
    std::vector<Bytes> parts;
    if (rank == 0)
        parts =
            say(gathered ? or_out_of_memory([&] { return lay_out(own, *gathered); })
                         : Result<std::vector<Bytes>>(std::unexpected(copy_of(gathered.error()))));
    auto part = during(plan_phase, foreground->scatter(std::move(parts)));
    if (rank == 0)
        (void)had_memory([this] { unsaid.resize(foreground->ranks()); });
    if (!part)
        lose(unplanned, part.error());
    if (!gathered) // whatever became of telling the others
        return std::unexpected(std::move(gathered.error()));
    if (!part)
        return std::unexpected(std::move(part.error()));
    return hear(own, std::move(*part));
}

Result<void> AsyncSaver::Impl::stage(SaveJob& job,
                                     const std::function<Result<void>(SaveJob&)>& copy) {
    if (auto known = job.read_plan(); !known)
        return known;
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
    {
        const std::lock_guard lock(mutex);
        if (unplanned) // what is said there might be the answer to something else
            return std::unexpected(copy_of(*unplanned));
        if (broken)
            plan = std::unexpected(copy_of(*broken));
    }
    SaveJobs own;
    std::vector<WriteItem> all;
    const bool made = had_memory([&] {
        if (plan)
            all = plan->items;
        own.push_back(make_job(std::move(path)));
    });
    if (!made && plan)
        plan = std::unexpected(out_of_memory());
    if (auto begun = begin(own, std::move(plan)); !begun)
        return begun;
    const std::shared_ptr<SaveJob> job = own.front();
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
        job->failed = copy_of(staged.error());
        (void)had_memory(
            [&] { job->failed->operation = fmt::format("stage data of rank {}", rank); });
        job->staged.reset();
    }
    if (!thrown)
        job->handler = std::move(handler);
    std::optional<EndedSave> lost;
    {
        const std::lock_guard lock(mutex);
        if (lifted)
            job->writer->lift_limits();
        jobs.splice(jobs.end(), own);
        if (broken)
            lost = end(job, std::unexpected(copy_of(*broken)));
        changed.notify_all();
    }
    if (lost)
        tell(std::move(*lost));
    if (thrown)
        std::rethrow_exception(thrown);
    return {};
}

} // namespace safering
