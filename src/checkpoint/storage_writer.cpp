#include <safering/storage_writer.hpp>

#include <algorithm>
#include <bit>
#include <unordered_map>
#include <unordered_set>

#include <fmt/format.h>

#include "checkpoint/attempt_directory.hpp"
#include "checkpoint/commit_checkpoint.hpp"
#include "checkpoint/commit_part.hpp"
#include "checkpoint/deliver.hpp"
#include "checkpoint/index.hpp"
#include "checkpoint/job_counter.hpp"
#include "checkpoint/manifest_builder.hpp"
#include "checkpoint/perform.hpp"
#include "checkpoint/shared_reactor.hpp"
#include "checkpoint/strict_json.hpp"
#include "checkpoint/write_job.hpp"
#include "plan/layout.hpp"

namespace safering {

using namespace checkpoint;

namespace {

// Between prepare_global_plan and finish, on the coordinator.
struct Attempt {
    std::string id;
    std::string directory;
    plan::Layout layout;
    /// As they were given out.
    std::vector<SavePlan> plans;
};

// A rank's own part of the layout, with only the files that it writes.
StoragePlan storage_of(const Attempt& attempt, std::size_t rank, FileLayout layout,
                       std::uint64_t chunk_bytes) {
    StoragePlan storage{.attempt = attempt.id,
                        .directory = attempt.directory,
                        .layout = layout,
                        .chunk_bytes = chunk_bytes,
                        .files = {},
                        .placements = attempt.layout.placements[rank]};
    std::map<std::uint32_t, std::uint32_t> own; // index in the layout -> in storage.files
    for (ItemPlacement& placement : storage.placements) {
        const auto [found, inserted] =
            own.try_emplace(placement.file, static_cast<std::uint32_t>(storage.files.size()));
        if (inserted)
            storage.files.push_back(attempt.layout.files[placement.file].file);
        placement.file = found->second;
    }
    return storage;
}

// A full file has no place for a byte that nobody writes, and shards with a hole would load no more.
Result<void> check_coverage(const std::vector<SavePlan>& plans) {
    struct Tensor {
        const WriteItem* first = nullptr;
        /// Empty while the only item is the whole tensor, as it is for most of a large plan.
        std::vector<ChunkStorageMetadata> chunks;
    };
    std::size_t items = 0;
    for (const SavePlan& plan : plans)
        items += plan.items.size();
    std::unordered_map<std::string_view, Tensor> tensors(items);
    for (const SavePlan& plan : plans)
        for (const WriteItem& item : plan.items) {
            Tensor& tensor = tensors[item.fqn];
            if (tensor.first == nullptr) {
                tensor.first = &item;
                if (item.chunk.sizes != item.size)
                    tensor.chunks.push_back(item.chunk);
                continue;
            }
            if (item.dtype != tensor.first->dtype || item.size != tensor.first->size)
                return std::unexpected(
                    Error{.code = Errc::plan_shape_mismatch,
                          .operation = "prepare global plan",
                          .tensor = item.fqn,
                          .detail = fmt::format("rank {} plans another dtype or size than a rank "
                                                "before it",
                                                plan.rank)});
            if (tensor.chunks.empty())
                tensor.chunks.push_back(tensor.first->chunk);
            tensor.chunks.push_back(item.chunk);
        }
    for (const auto& [fqn, tensor] : tensors) {
        const std::span<const ChunkStorageMetadata> chunks =
            tensor.chunks.empty() ? std::span(&tensor.first->chunk, 1) : std::span(tensor.chunks);
        if (auto tiled = check_tiling(tensor.first->fqn, tensor.first->size, chunks); !tiled)
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
    JobCounter jobs;

    ~Impl() {
        // Nobody is left to tell; what stays behind carries the attempt's name and is cleaned away by the
        // next save that succeeds.
        (void)abort();
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

    Result<SaveReport> finish_alone();

    Result<void> abort() {
        jobs.wait_idle();
        if (!attempt)
            return {};
        const std::string directory = attempt->directory;
        attempt.reset();
        auto running = reactor.get();
        if (!running)
            return std::unexpected(std::move(running.error()));
        return remove_attempt_directory(**running, directory);
    }

    Result<void> check_parent(Reactor& running) {
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
    impl_->reactor = SharedReactor(std::move(reactor));
    impl_->options = std::move(options);
    impl_->set_path(std::move(path));
}

HuggingFaceStorageWriter::~HuggingFaceStorageWriter() = default;
HuggingFaceStorageWriter::HuggingFaceStorageWriter(HuggingFaceStorageWriter&&) noexcept = default;
HuggingFaceStorageWriter&
HuggingFaceStorageWriter::operator=(HuggingFaceStorageWriter&&) noexcept = default;

Result<void> HuggingFaceStorageWriter::reset(std::string path) {
    auto aborted = impl_->abort();
    if (!path.empty())
        impl_->set_path(std::move(path));
    return aborted;
}

Result<SavePlan> HuggingFaceStorageWriter::prepare_local_plan(SavePlan plan) const {
    const auto hash = [](const WriteItem* item) {
        std::size_t value = std::hash<std::string>{}(item->fqn);
        for (const std::uint64_t offset : item->chunk.offsets)
            value = value * 0x9E3779B97F4A7C15 + offset; // Knuth's multiplicative hash
        return value;
    };
    const auto equal = [](const WriteItem* a, const WriteItem* b) {
        return a->fqn == b->fqn && a->chunk.offsets == b->chunk.offsets;
    };
    std::unordered_set<const WriteItem*, decltype(hash), decltype(equal)> seen(plan.items.size(),
                                                                               hash, equal);
    for (const WriteItem& item : plan.items) {
        const auto bad = [&](Errc code, std::string detail) {
            return std::unexpected(
                Error{.code = code,
                      .operation = fmt::format("prepare local plan of rank {}", plan.rank),
                      .tensor = item.fqn,
                      .detail = std::move(detail)});
        };
        if (item.chunk.offsets.size() != item.size.size() ||
            item.chunk.sizes.size() != item.size.size())
            return bad(Errc::plan_shape_mismatch, "offsets, sizes and global size differ in rank");
        for (std::size_t d = 0; d < item.size.size(); ++d)
            if (item.chunk.offsets[d] > item.size[d] ||
                item.chunk.sizes[d] > item.size[d] - item.chunk.offsets[d])
                return bad(Errc::plan_out_of_bounds, fmt::format("in dimension {}", d));
        const bool empty = std::ranges::find(item.chunk.sizes, 0u) != item.chunk.sizes.end();
        if (!empty && !seen.insert(&item).second)
            return bad(Errc::plan_duplicate_item, "this rank plans the same chunk twice");
    }
    return plan;
}

Result<std::vector<SavePlan>>
HuggingFaceStorageWriter::prepare_global_plan(std::vector<SavePlan> plans) {
    if (auto aborted = impl_->abort(); !aborted)
        return std::unexpected(std::move(aborted.error()));
    auto running = impl_->reactor.get();
    if (!running)
        return std::unexpected(std::move(running.error()));
    Reactor& reactor = **running;
    const WriterOptions& options = impl_->options;
    if (plans.empty())
        return fail(Errc::plan_not_prepared, "prepare global plan", "there is no rank's plan");
    if (options.alone && (plans.size() != 1 || options.layout != FileLayout::sharded))
        return fail(Errc::plan_not_prepared, "prepare global plan",
                    "a rank that saves alone has one plan, and the sharded layout");
    for (std::size_t rank = 0; rank < plans.size(); ++rank)
        plans[rank].rank = static_cast<std::uint32_t>(rank);
    if (auto covered =
            options.alone ? check_part_target(reactor, impl_->target) : check_coverage(plans);
        !covered)
        return std::unexpected(std::move(covered.error()));
    auto layout = plan::plan_layout(plans, {.layout = options.layout,
                                            .fqn_to_index_mapping = options.fqn_to_index_mapping,
                                            .metadata = options.metadata,
                                            .first_rank = options.alone ? options.alone->rank : 0,
                                            .ranks = options.alone ? options.alone->ranks : 0});
    if (!layout)
        return std::unexpected(std::move(layout.error()));
    if (auto checked = impl_->check_parent(reactor); !checked)
        return std::unexpected(std::move(checked.error()));
    Attempt attempt{
        .id = make_attempt_id(), .directory = {}, .layout = std::move(*layout), .plans = {}};
    attempt.directory = impl_->attempt_base().attempt_directory(attempt.id);
    // Never more than the default buffer: a reader must hold a whole piece to check its digest.
    const std::uint64_t chunk_bytes =
        std::min(std::bit_floor(std::uint64_t{reactor.info().buffer_bytes}),
                 std::uint64_t{ReactorOptions{}.buffer_bytes});
    for (std::size_t rank = 0; rank < plans.size(); ++rank)
        plans[rank].storage = storage_of(attempt, rank, options.layout, chunk_bytes);
    if (auto created = create_attempt_directory(reactor, attempt.directory, attempt.layout.files);
        !created)
        return std::unexpected(std::move(created.error()));
    attempt.plans = plans;
    impl_->attempt = std::move(attempt);
    return plans;
}

void HuggingFaceStorageWriter::start_write(const SavePlan& plan, SavePlanner& planner,
                                           WriteHandler handler) {
    Reactor& reactor = *impl_->reactor.value();
    auto job = WriteJob::make(reactor, plan, planner,
                              {.digests = impl_->options.digests,
                               .progress = impl_->options.progress,
                               .stop = impl_->stop.get_token()});
    if (!job)
        return deliver<WriteResults>(reactor, std::move(handler),
                                     std::unexpected(std::move(job.error())));
    (*job)->start([ticket = JobCounter::Ticket(impl_->jobs), &reactor,
                   handler = std::move(handler)](Result<WriteResults> result) mutable {
        deliver(reactor, std::move(handler), std::move(result));
    });
}

// The attempt's directory is left empty, and removed with what an earlier attempt of this rank left.
Result<SaveReport> HuggingFaceStorageWriter::Impl::finish_alone() {
    Reactor& running = *reactor.value();
    std::vector<std::string> files;
    for (const plan::LayoutFile& file : attempt->layout.files)
        files.push_back(file.file.name);
    if (auto done = commit_part(running, target, attempt->directory, files); !done)
        return std::unexpected(std::move(done.error()));
    SaveReport report{.path = target.path,
                      .attempt = attempt->id,
                      .files = files.size(),
                      .tensor_bytes = attempt->layout.total_size,
                      .reactor = running.info(),
                      .file_system = file_system,
                      .notes = file_system_notes(file_system)};
    if (auto removed = abort(); !removed)
        report.notes.push_back(removed.error().message());
    std::ranges::move(remove_older_attempts(running, attempt_base(), report.attempt),
                      std::back_inserter(report.notes));
    return report;
}

Result<SaveReport> HuggingFaceStorageWriter::finish(const Metadata&,
                                                    std::vector<WriteResults> results) {
    if (!impl_->attempt)
        return fail(Errc::plan_not_prepared, "finish",
                    "no attempt is open: prepare_global_plan was not called, or failed");
    const auto give_up = [&](Error error) {
        // The first error is the one to report; a directory that stays is cleaned away later.
        (void)impl_->abort();
        return std::unexpected(std::move(error));
    };
    impl_->jobs.wait_idle();
    Attempt& attempt = *impl_->attempt;
    auto manifest = build_manifest(attempt.plans, attempt.layout, results);
    if (!manifest)
        return give_up(std::move(manifest.error()));
    if (impl_->options.alone) {
        auto report = impl_->finish_alone();
        return report ? report : give_up(std::move(report.error()));
    }
    CommitInput input{.target = impl_->target,
                      .attempt = attempt.id,
                      .data_files = {},
                      .manifest = {},
                      .index = {},
                      .stale = {}};
    for (const plan::LayoutFile& file : attempt.layout.files)
        input.data_files.push_back(file.file.name);
    if (impl_->options.layout == FileLayout::full) {
        input.index = index_text(attempt.layout.total_size, [&](const auto& add) {
            for (const auto& [fqn, file] : attempt.layout.weight_map)
                add(fqn, attempt.layout.files[file].file.name);
        });
        manifest->index =
            ManifestIndex{.file_bytes = input.index.size(), .digest = digest_of(input.index)};
    }
    input.manifest = to_text(*manifest);
    Reactor& reactor = *impl_->reactor.value();
    CommitOutcome outcome = commit_checkpoint(reactor, std::move(input));
    SaveReport report{.path = impl_->target.path,
                      .attempt = attempt.id,
                      .files = attempt.layout.files.size(),
                      .tensor_bytes = attempt.layout.total_size,
                      .replaced = outcome.replaced,
                      .reactor = reactor.info(),
                      .file_system = impl_->file_system,
                      .notes = file_system_notes(impl_->file_system)};
    if (outcome.published)
        impl_->attempt.reset();
    if (outcome.error)
        return give_up(std::move(*outcome.error));
    std::ranges::move(outcome.notes, std::back_inserter(report.notes));
    return report;
}

Result<void> HuggingFaceStorageWriter::abort() {
    return impl_->abort();
}

void HuggingFaceStorageWriter::cancel() {
    std::exchange(impl_->stop, std::stop_source()).request_stop();
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
                                             .tensor = item.fqn});
            index = found->second;
        }
        out[index].push_back(std::move(item));
    }
    return out;
}

} // namespace safering
