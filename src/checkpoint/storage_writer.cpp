#include <safering/storage_writer.hpp>

#include <algorithm>
#include <bit>
#include <mutex>
#include <utility>

#include <fmt/format.h>

#include "checkpoint/attempt_directory.hpp"
#include "checkpoint/caught.hpp"
#include "checkpoint/commit_checkpoint.hpp"
#include "checkpoint/commit_part.hpp"
#include "checkpoint/deliver.hpp"
#include "checkpoint/index.hpp"
#include "checkpoint/job_counter.hpp"
#include "checkpoint/manifest_builder.hpp"
#include "checkpoint/metrics.hpp"
#include "checkpoint/perform.hpp"
#include "checkpoint/shared_reactor.hpp"
#include "checkpoint/strict_json.hpp"
#include "checkpoint/write_job.hpp"
#include "io/trace.hpp"
#include "out_of_memory.hpp"
#include "plan/exchange_plan.hpp"
#include "plan/layout.hpp"
#include "plan/text.hpp"

namespace safering {

using namespace checkpoint;

namespace {

// Between prepare_global_plan and finish, on the coordinator.
struct Attempt {
    std::string id;
    std::string directory;
    /// Names of the data files.
    std::vector<std::string> files;
    std::uint64_t tensor_bytes;
    ManifestBuilder manifest;
    /// Empty in a sharded layout.
    std::string index;
    HeadsUnderWay heads;
};

// A rank's own part of the layout, with only the files that it writes.
StoragePlan storage_of(const plan::Layout& layout, std::size_t rank,
                       std::optional<ExchangePlan> exchange, StoragePlan storage) {
    storage.placements = layout.placements[rank];
    std::map<std::uint32_t, std::uint32_t> own; // index in the layout -> in storage.files
    for (ItemPlacement& placement : storage.placements) {
        const auto [found, inserted] =
            own.try_emplace(placement.file, static_cast<std::uint32_t>(storage.files.size()));
        if (inserted)
            storage.files.push_back(layout.files[placement.file].file);
        placement.file = found->second;
    }
    if (exchange) { // about these files alone
        for (ExchangedCells& cells : exchange->cells)
            cells.file = own.at(cells.file);
        std::ranges::sort(exchange->cells, {}, [](const ExchangedCells& cells) {
            return std::pair(cells.file, cells.first_cell);
        });
        for (ForeignItem& item : exchange->items)
            item.placement.file = own.at(item.placement.file);
    }
    storage.exchange = std::move(exchange);
    return storage;
}

void add_exchange(SaveReport& report, const std::vector<WriteResults>& results) {
    const std::string* reason = nullptr;
    for (const WriteResults& result : results) {
        report.process_memory_bytes += result.exchange.process_memory_bytes;
        report.shared_memory_bytes += result.exchange.shared_memory_bytes;
        if (!result.exchange.reason.empty())
            reason = &result.exchange.reason;
    }
    if (reason != nullptr)
        report.notes.push_back("ranks exchanged through shared memory: " + *reason);
}

// A rank that went another way than most may be the one that the others wait for.
void add_ranks(SaveReport& report, std::vector<WriteResults> results) {
    for (WriteResults& result : results)
        report.ranks.push_back(
            {result.rank, result.work, result.backend, std::move(result.reason)});
    std::ranges::sort(report.ranks, {}, &RankReport::rank);
    const RankSummary summary = summarise(report.ranks);
    for (const BackendRanks& one : summary.backends)
        if (const BackendKind usual = summary.backends.front().backend; one.backend != usual)
            report.notes.push_back(fmt::format("{} wrote by {}, not {} as most: {}",
                                               plan::ranks_in_words(one.ranks), name(one.backend),
                                               name(usual), one.reason));
}

// A full file has no place for a byte that nobody writes, and shards with a hole would load no more.
Result<void> check_coverage(const std::vector<SavePlan>& plans, const plan::ItemNames& names) {
    const plan::ItemsByName groups = plan::group_by_name(names);
    std::vector<ChunkStorageMetadata> chunks;
    for (std::size_t n = 0; n < names.first_item.size(); ++n) {
        const WriteItem& first = *names.first_item[n];
        const bool alone = groups.begin[n + 1] - groups.begin[n] == 1;
        chunks.clear();
        for (std::size_t r = groups.begin[n]; !alone && r < groups.begin[n + 1]; ++r) {
            const auto [plan, item] = groups.references[r];
            chunks.push_back(plans[plan].items[item].chunk);
        }
        if (auto tiled = check_tiling(first.fqn, first.size,
                                      alone ? std::span<const ChunkStorageMetadata>(&first.chunk, 1)
                                            : std::span<const ChunkStorageMetadata>(chunks));
            !tiled)
            return tiled;
    }
    return {};
}

} // namespace

struct HuggingFaceStorageWriter::Impl {
    SharedReactor reactor;
    TargetPath target;
    std::string path;
    WriterOptions options;
    std::optional<Attempt> attempt;
    FileSystemInfo file_system;
    std::stop_source stop;
    std::shared_ptr<Throttle> throttle;
    JobCounter jobs;
    double prepare_seconds = 0;

    // Of the attempt that was written to last.
    std::mutex work_mutex;
    std::string work_attempt;
    WorkReport work;

    void begin_work(const std::string& attempt_id) {
        const std::lock_guard lock(work_mutex);
        if (std::exchange(work_attempt, attempt_id) != attempt_id)
            work = {};
    }
    void add_work(const WorkReport& done) {
        const std::lock_guard lock(work_mutex);
        work += done;
    }
    WorkReport work_done() {
        const std::lock_guard lock(work_mutex);
        return work;
    }

    ~Impl() {
        // Nobody is left to tell; what stays behind carries the attempt's name and is cleaned away by the
        // next save that succeeds.
        (void)or_out_of_memory([this] { return abort(); });
    }

    void set_path(std::string given) {
        path = std::move(given);
        target = make_target_path(path);
    }

    // What attempts are named after: ranks that save alone must not clean away each other's.
    TargetPath attempt_base() const {
        TargetPath base = target;
        if (options.alone)
            base.name += fmt::format(".rank-{:05}", options.alone->rank);
        return base;
    }

    Result<SavePlan> prepare_local_plan(SavePlan plan);
    Result<std::vector<SavePlan>> prepare_global_plan(std::vector<SavePlan> plans);
    Result<SaveReport> finish(std::vector<WriteResults> results);
    Result<SaveReport> commit(std::vector<WriteResults> results);
    Result<SaveReport> commit_alone(std::vector<WriteResults> results);
    Result<Manifest> build_manifest(const std::vector<WriteResults>& results);
    SaveReport report_of(Reactor& running) const;
    Result<std::shared_ptr<WriteJob>> make_job(const SavePlan& plan, SavePlanner& planner);

    Result<void> abort() {
        jobs.wait_idle();
        if (!attempt)
            return {};
        (void)attempt->heads.wait(); // what they came to is of no interest any more
        const std::string directory = std::move(attempt->directory);
        attempt.reset();
        auto running = reactor.get();
        if (!running)
            return std::unexpected(std::move(running.error()));
        return remove_attempt_directory(**running, directory);
    }

    Result<void> check_parent(Reactor& running) {
        if (target.name.empty())
            return std::unexpected(Error{.code = std::make_error_code(std::errc::invalid_argument),
                                         .operation = "prepare global plan",
                                         .file = target.path,
                                         .detail = "the root directory is no checkpoint; name one "
                                                   "inside it"});
        auto status = perform(running, {.op = Opcode::stat, .path = target.parent});
        if (!status) {
            status.error().operation = "prepare global plan";
            status.error().detail += "the directory that the checkpoint goes into must exist";
            return std::unexpected(std::move(status.error()));
        }
        // The attempt lies beside the target and is renamed into its place.
        const auto existing = running.wait({.op = Opcode::stat, .path = target.path});
        if (!existing.error && existing.status.device != status->status.device)
            return std::unexpected(Error{
                .code = std::make_error_code(std::errc::cross_device_link),
                .operation = "prepare global plan",
                .file = target.path,
                .detail = "a file system is mounted here, and a checkpoint is renamed into place "
                          "from beside it; save to a directory inside the mount"});
        auto info = running.file_system(target.parent);
        if (!info)
            return std::unexpected(std::move(info.error()));
        file_system = std::move(*info);
        return {};
    }
};

HuggingFaceStorageWriter::HuggingFaceStorageWriter(std::string path, WriterOptions options,
                                                   std::shared_ptr<Reactor> reactor)
    : impl_(std::make_unique<Impl>()) {
    impl_->reactor = SharedReactor(std::move(reactor), path);
    impl_->options = std::move(options);
    impl_->throttle = std::make_shared<Throttle>(impl_->options.limits);
    impl_->set_path(std::move(path));
}

HuggingFaceStorageWriter::~HuggingFaceStorageWriter() = default;
HuggingFaceStorageWriter::HuggingFaceStorageWriter(HuggingFaceStorageWriter&&) noexcept = default;
HuggingFaceStorageWriter&
HuggingFaceStorageWriter::operator=(HuggingFaceStorageWriter&&) noexcept = default;

Result<void> HuggingFaceStorageWriter::reset(std::string path) {
    return or_out_of_memory([&] {
        auto aborted = impl_->abort();
        if (!path.empty())
            impl_->set_path(std::move(path));
        return aborted;
    });
}

Result<SavePlan> HuggingFaceStorageWriter::prepare_local_plan(SavePlan plan) const {
    return or_out_of_memory([&] { return impl_->prepare_local_plan(std::move(plan)); });
}

Result<SavePlan> HuggingFaceStorageWriter::Impl::prepare_local_plan(SavePlan plan) {
    const std::string operation = fmt::format("prepare local plan of rank {}", plan.rank);
    for (const WriteItem& item : plan.items) {
        const auto bad = [&](Errc code, std::string detail) {
            return std::unexpected(Error{.code = code,
                                         .operation = operation,
                                         .tensor = std::string(item.fqn),
                                         .detail = std::move(detail)});
        };
        if (item.chunk.offsets.size() != item.size.size() ||
            item.chunk.sizes.size() != item.size.size())
            return bad(Errc::plan_shape_mismatch, "offsets, sizes and global size differ in rank");
        for (std::size_t d = 0; d < item.size.size(); ++d)
            if (item.chunk.offsets[d] > item.size[d] ||
                item.chunk.sizes[d] > item.size[d] - item.chunk.offsets[d])
                return bad(Errc::plan_out_of_bounds, fmt::format("in dimension {}", d));
    }
    std::vector<SavePlan> plans;
    plans.push_back(std::move(plan));
    const auto names = plan::number_names(plans, operation.c_str());
    if (!names)
        return std::unexpected(names.error());
    if (options.exchange != ExchangeWay::off && options.layout == FileLayout::full) {
        auto running = reactor.get();
        if (!running)
            return std::unexpected(std::move(running.error()));
        plans.front().endpoint = (*running)->endpoint();
    }
    if (auto differ = plan::check_duplicates(plans, *names); !differ) {
        differ.error().operation = operation;
        return std::unexpected(std::move(differ.error()));
    }
    return std::move(plans.front());
}

Result<std::vector<SavePlan>>
HuggingFaceStorageWriter::prepare_global_plan(std::vector<SavePlan> plans) {
    return or_out_of_memory([&] { return impl_->prepare_global_plan(std::move(plans)); });
}

Result<std::vector<SavePlan>>
HuggingFaceStorageWriter::Impl::prepare_global_plan(std::vector<SavePlan> plans) {
    const trace::Span span("prepare_global_plan");
    prepare_seconds = 0;
    const WorkMeter::Phase preparing(prepare_seconds);
    if (auto aborted = abort(); !aborted)
        return std::unexpected(std::move(aborted.error()));
    auto got = reactor.get();
    if (!got)
        return std::unexpected(std::move(got.error()));
    Reactor& running = **got;
    if (plans.empty())
        return fail(Errc::plan_not_prepared, "prepare global plan", "there is no rank's plan");
    if (options.alone && (plans.size() != 1 || options.layout != FileLayout::sharded))
        return fail(Errc::plan_not_prepared, "prepare global plan",
                    "a rank that saves alone has one plan, and the sharded layout");
    for (std::size_t rank = 0; rank < plans.size(); ++rank)
        plans[rank].rank = static_cast<std::uint32_t>(rank);
    auto names = plan::number_names(plans, "prepare global plan");
    if (!names)
        return std::unexpected(std::move(names.error()));
    if (auto covered =
            options.alone ? check_part_target(running, target) : check_coverage(plans, *names);
        !covered)
        return std::unexpected(std::move(covered.error()));
    auto layout = plan::plan_layout(plans, std::move(*names),
                                    {.layout = options.layout,
                                     .fqn_to_index_mapping = options.fqn_to_index_mapping,
                                     .metadata = options.metadata,
                                     .first_rank = options.alone ? options.alone->rank : 0,
                                     .ranks = options.alone ? options.alone->ranks : 0});
    if (!layout)
        return std::unexpected(std::move(layout.error()));
    if (auto checked = check_parent(running); !checked)
        return std::unexpected(std::move(checked.error()));
    const std::string id = make_attempt_id();
    const std::string directory = attempt_base().attempt_directory(id);
    // Never more than the default buffer: a reader must hold a whole piece to check its digest.
    const std::uint64_t chunk_bytes =
        std::min(std::bit_floor(std::uint64_t{running.info().buffer_bytes}),
                 std::uint64_t{ReactorOptions{}.buffer_bytes});
    auto exchanges = plan::plan_exchange(
        plans, *layout,
        {.way = options.layout == FileLayout::full ? options.exchange : ExchangeWay::off,
         .chunk_bytes = chunk_bytes});
    for (std::size_t rank = 0; rank < plans.size(); ++rank)
        plans[rank].storage = storage_of(*layout, rank, std::move(exchanges[rank]),
                                         {.attempt = id,
                                          .directory = directory,
                                          .layout = options.layout,
                                          .chunk_bytes = chunk_bytes});
    Attempt begun{.id = id,
                  .directory = directory,
                  .files = {},
                  .tensor_bytes = layout->total_size,
                  .manifest = ManifestBuilder(plans, *layout),
                  .index = {},
                  .heads = {}};
    for (const plan::LayoutFile& file : layout->files)
        begun.files.push_back(file.file.name);
    if (options.layout == FileLayout::full)
        begun.index = index_text(layout->total_size, [&](const auto& add) {
            for (const auto& [fqn, file] : layout->weight_map)
                add(fqn, begun.files[file]);
        });
    // Last, as there is something to abort from here on.
    auto heads = create_attempt_directory(running, directory, std::move(layout->files));
    if (!heads)
        return std::unexpected(std::move(heads.error()));
    begun.heads = std::move(*heads);
    attempt = std::move(begun);
    return plans;
}

void HuggingFaceStorageWriter::start_write(const SavePlan& plan, SavePlanner& planner,
                                           WriteHandler handler) {
    auto delivery = Delivery<WriteResults>::make(executor(), handler);
    if (!delivery)
        return decline(plan, no_memory);
    auto job = or_out_of_memory([&] { return impl_->make_job(plan, planner); });
    if (!job) {
        metrics::add_write({}, metrics::Outcome::failed);
        return Delivery<WriteResults>::end(std::move(delivery),
                                           std::unexpected(std::move(job.error())));
    }
    (*job)->start([ticket = JobCounter::Ticket(impl_->jobs),
                   delivery = std::move(delivery)](Result<WriteResults> result) mutable {
        Delivery<WriteResults>::end(std::move(delivery), std::move(result));
    });
}

// Partners wait for a rank until it takes part or tells them why it does not.
Result<std::shared_ptr<WriteJob>> HuggingFaceStorageWriter::Impl::make_job(const SavePlan& plan,
                                                                           SavePlanner& planner) {
    Reactor& running = *reactor.value();
    if (!WriteExchange::claim(running, plan))
        return fail(
            Errc::plan_not_prepared, "write data",
            "this plan has been written or declined before, and ranks that exchange do so once; "
            "prepare the save again");
    return telling(
        [&] {                          // the planner may throw
            if (stop.stop_requested()) // of what was written before
                stop = std::stop_source();
            if (plan.storage)
                begin_work(plan.storage->attempt);
            return WriteJob::make(running, plan, planner,
                                  {.digests = options.digests,
                                   .progress = options.progress,
                                   .stop = stop.get_token(),
                                   .throttle = throttle,
                                   .on_work = [this](const WorkReport& done) { add_work(done); }});
        },
        [&](const std::string& why) { WriteExchange::decline(running, plan, why); });
}

Result<Manifest>
HuggingFaceStorageWriter::Impl::build_manifest(const std::vector<WriteResults>& results) {
    if (auto durable = attempt->heads.wait(); !durable)
        return std::unexpected(std::move(durable.error()));
    return attempt->manifest.build(results);
}

SaveReport HuggingFaceStorageWriter::Impl::report_of(Reactor& running) const {
    return {.path = target.path,
            .attempt = attempt->id,
            .files = attempt->files.size(),
            .tensor_bytes = attempt->tensor_bytes,
            .reactor = running.info(),
            .file_system = file_system,
            .notes = environment_notes(file_system)};
}

// The attempt's directory is left empty, and removed with what an earlier attempt of this rank left.
Result<SaveReport> HuggingFaceStorageWriter::Impl::commit_alone(std::vector<WriteResults> results) {
    if (auto manifest = build_manifest(results); !manifest)
        return std::unexpected(std::move(manifest.error()));
    Reactor& running = *reactor.value();
    SaveReport report = report_of(running);
    for (WriteResults& result : results) // of the plan, there is one
        result.rank = options.alone->rank;
    add_ranks(report, std::move(results));
    if (auto done = commit_part(running, target, attempt->directory, attempt->files); !done)
        return std::unexpected(std::move(done.error()));
    if (auto removed = abort(); !removed)
        report.notes.push_back(removed.error().message());
    std::ranges::move(remove_older_attempts(running, attempt_base(), report.attempt),
                      std::back_inserter(report.notes));
    return report;
}

Result<SaveReport> HuggingFaceStorageWriter::finish(const Metadata&,
                                                    std::vector<WriteResults> results) {
    double seconds = 0;
    auto report = [&] {
        const WorkMeter::Phase committing(seconds);
        return or_out_of_memory([&] { return impl_->finish(std::move(results)); });
    }();
    metrics::add_commit(report ? report->tensor_bytes : 0, seconds,
                        report ? metrics::Outcome::good : metrics::Outcome::failed);
    if (report) {
        report->prepare_seconds = impl_->prepare_seconds;
        report->commit_seconds = seconds;
        report->work = impl_->work_done();
    }
    return report;
}

WorkReport HuggingFaceStorageWriter::work() const {
    return impl_->work_done();
}

Result<SaveReport> HuggingFaceStorageWriter::Impl::finish(std::vector<WriteResults> results) {
    trace::Interval interval("finish: the metadata commit");
    if (!attempt)
        return fail(Errc::plan_not_prepared, "finish",
                    "no attempt is open: prepare_global_plan was not called, or failed");
    jobs.wait_idle();
    auto report = or_out_of_memory([&] {
        return options.alone ? commit_alone(std::move(results)) : commit(std::move(results));
    });
    // The first error is the one to report; a directory that stays is cleaned away later. Nothing is left to abort
    // where the checkpoint is in its place.
    if (!report)
        (void)or_out_of_memory([this] { return abort(); });
    return report;
}

// Forgets the attempt as soon as it is in its place.
Result<SaveReport> HuggingFaceStorageWriter::Impl::commit(std::vector<WriteResults> results) {
    auto manifest = build_manifest(results);
    if (!manifest)
        return std::unexpected(std::move(manifest.error()));
    Reactor& running = *reactor.value();
    CommitInput input{.target = target,
                      .attempt = attempt->id,
                      .data_files = attempt->files,
                      .manifest = {},
                      .index = std::move(attempt->index),
                      .stale = {}};
    if (!input.index.empty())
        manifest->index =
            ManifestIndex{.file_bytes = input.index.size(), .digest = digest_of(input.index)};
    input.manifest = to_text(*manifest);
    SaveReport report = report_of(running);
    add_exchange(report, results);
    add_ranks(report, std::move(results));
    CommitOutcome outcome = commit_checkpoint(running, std::move(input));
    if (outcome.published)
        attempt.reset();
    if (outcome.error)
        return std::unexpected(std::move(*outcome.error));
    report.replaced = outcome.replaced;
    std::ranges::move(outcome.notes, std::back_inserter(report.notes));
    return report;
}

void HuggingFaceStorageWriter::decline(const SavePlan& plan, const std::string& why) {
    if (const auto running = impl_->reactor.get(); running && WriteExchange::claim(**running, plan))
        WriteExchange::decline(**running, plan, why);
}

Result<void> HuggingFaceStorageWriter::abort() {
    return or_out_of_memory([this] { return impl_->abort(); });
}

void HuggingFaceStorageWriter::cancel() {
    impl_->stop.request_stop();
}

void HuggingFaceStorageWriter::lift_limits() {
    impl_->throttle->lift();
}

std::string HuggingFaceStorageWriter::metadata_path() const {
    return join(impl_->path, std::string(index_name));
}
const std::string& HuggingFaceStorageWriter::path() const {
    return impl_->path;
}
const std::shared_ptr<Reactor>& HuggingFaceStorageWriter::reactor() {
    return impl_->reactor.value();
}
boost::asio::io_context::executor_type HuggingFaceStorageWriter::executor() {
    return impl_->reactor.value()->executor();
}

Result<std::map<std::uint32_t, std::vector<WriteItem>>>
HuggingFaceStorageWriter::split_by_storage_plan(const FqnToIndexMapping& mapping,
                                                std::vector<WriteItem> items) {
    std::map<std::uint32_t, std::vector<WriteItem>> out;
    for (WriteItem& item : items) {
        std::uint32_t index = 1;
        if (!mapping.empty()) {
            const auto found = mapping.find(item.fqn);
            if (found == mapping.end())
                return std::unexpected(Error{.code = Errc::plan_unmapped_tensor,
                                             .operation = "split by storage plan",
                                             .tensor = std::string(item.fqn)});
            index = found->second;
        }
        out[index].push_back(std::move(item));
    }
    return out;
}

} // namespace safering
