#include <safering/save_load.hpp>

#include <algorithm>
#include <bit>

#include "checkpoint/attempt_directory.hpp"
#include "checkpoint/metrics.hpp"
#include "checkpoint/perform.hpp"
#include "checkpoint/shared_reactor.hpp"
#include "checkpoint/write_job.hpp"
#include "io/huge_memory.hpp"
#include "out_of_memory.hpp"
#include "plan/layout.hpp"
#include "safetensors/header.hpp"

namespace safering {

using namespace checkpoint;

namespace {

// The only file of a one-file attempt, until it gets its name.
constexpr const char* file_name = "data.safetensors";
// Where a vector load of any kind is aligned, and what torch and numpy allocate at.
constexpr std::uint64_t tensor_alignment = 64;

Result<WriteResults> write_attempt(Reactor& reactor, const SavePlan& plan, SavePlanner& planner,
                                   WorkReport& work) {
    auto job =
        WriteJob::make(reactor, plan, planner,
                       {.digests = false, .on_work = [&](const WorkReport& done) { work = done; }});
    if (!job)
        return std::unexpected(std::move(job.error()));
    return (*job)->run();
}

// One rename gives the durable file its name; the directory that it came from is empty then.
Result<void> publish(Reactor& reactor, const std::string& directory, const TargetPath& target) {
    const std::vector<Request> steps{
        {.op = Opcode::rename,
         .replace = true,
         .path = join(directory, file_name),
         .new_path = target.path},
        // A rename across directories is durable when both are.
        {.op = Opcode::sync_directory, .path = directory},
        {.op = Opcode::sync_directory, .path = target.parent},
    };
    for (const Request& step : steps)
        if (auto done = perform(reactor, step); !done)
            return std::unexpected(std::move(done.error()));
    return {};
}

// One try. `taken`: it failed, and somebody who saved to the same name at the same time has cleared its attempt away.
Result<SaveReport> try_save(const std::string& path, std::span<const NamedTensor> tensors,
                            const std::vector<std::pair<std::string, std::string>>& metadata,
                            Reactor& reactor, bool& taken) {
    std::vector<LocalTensor> locals;
    for (const NamedTensor& tensor : tensors)
        locals.push_back({.fqn = tensor.name, .data = tensor.data});
    DefaultSavePlanner planner(std::move(locals));
    const auto wrong = [&](Error error) {
        error.file = path; // not the layout's name for it
        return std::unexpected(std::move(error));
    };
    auto layout =
        plan::plan_layout({planner.create_local_plan()}, {.metadata = metadata, .format = {}});
    if (!layout)
        return wrong(std::move(layout.error()));
    if (layout->files.empty()) {
        auto head = safetensors::write_header({}, metadata);
        if (!head)
            return wrong(std::move(head.error()));
        layout->files.push_back({.file = {file_name, head->size(), head->size()}, .head = *head});
    }
    layout->files[0].file.name = file_name;
    // A link is replaced, not what it points at.
    const TargetPath target = make_target_path(path, LastLink::keep);
    auto existing = reactor.wait({.op = Opcode::stat, .path = target.path});
    if (!existing.error && existing.status.kind == FileKind::directory)
        return std::unexpected(Error{.code = Errc::checkpoint_not_a_file,
                                     .operation = "save file",
                                     .file = target.path,
                                     .detail = "a directory is in the way"});
    auto file_system = reactor.file_system(target.parent);
    if (!file_system)
        return std::unexpected(std::move(file_system.error()));
    const std::string attempt = make_attempt_id();
    const std::string directory = target.attempt_directory(attempt);
    SavePlan plan = planner.create_local_plan();
    plan.storage = StoragePlan{.attempt = attempt,
                               .directory = directory,
                               .layout = FileLayout::full,
                               .chunk_bytes = std::bit_floor(reactor.info().buffer_bytes),
                               .files = {layout->files[0].file},
                               .placements = layout->placements[0]};
    auto heads = create_attempt_directory(reactor, directory, std::move(layout->files));
    if (!heads) {
        taken = is_absent(heads.error());
        return std::unexpected(std::move(heads.error()));
    }
    WorkReport work;
    double commit_seconds = 0;
    auto written = or_out_of_memory([&] { return write_attempt(reactor, plan, planner, work); });
    if (auto durable = heads->wait(); written && !durable)
        written = std::unexpected(std::move(durable.error()));
    auto published = [&]() -> Result<void> {
        if (!written)
            return std::unexpected(std::move(written.error()));
        const WorkMeter::Phase committing(commit_seconds);
        return or_out_of_memory([&] { return publish(reactor, directory, target); });
    }();
    metrics::add_commit(published ? layout->total_size : 0, commit_seconds,
                        published ? metrics::Outcome::good : metrics::Outcome::failed);
    if (!published)
        (void)had_memory(
            [&] { taken = is_absent(reactor.wait({.op = Opcode::stat, .path = directory})); });
    auto removed = or_out_of_memory([&] { return remove_attempt_directory(reactor, directory); });
    if (!published)
        return std::unexpected(std::move(published.error()));
    SaveReport report{.path = target.path,
                      .attempt = attempt,
                      .files = 1,
                      .tensor_bytes = layout->total_size,
                      .replaced = !existing.error,
                      .commit_seconds = commit_seconds,
                      .work = work,
                      .ranks = {{0, work, reactor.info().backend, reactor.info().reason}},
                      .reactor = reactor.info(),
                      .file_system = *file_system,
                      .notes = environment_notes(*file_system)};
    std::ranges::move(remove_attempts_up_to(reactor, target, attempt),
                      std::back_inserter(report.notes));
    if (!removed)
        report.notes.push_back(removed.error().message());
    return report;
}

// Who saves to a name clears away what earlier saves to it have left, and cannot tell them from those that still run.
// Such a one begins anew; of several at once the last one's file stays, as where nobody clears anything away.
Result<SaveReport> save(const std::string& path, std::span<const NamedTensor> tensors,
                        const std::vector<std::pair<std::string, std::string>>& metadata,
                        Reactor& reactor) {
    constexpr int tries = 100;
    for (int i = 1;; ++i) {
        bool taken = false;
        auto saved = try_save(path, tensors, metadata, reactor, taken);
        if (saved || !taken || i == tries)
            return saved;
    }
}

} // namespace

SaveReport save_file(const std::string& path, std::span<const NamedTensor> tensors,
                     const std::vector<std::pair<std::string, std::string>>& metadata,
                     std::shared_ptr<Reactor> reactor) {
    SharedReactor shared(std::move(reactor), path);
    return value_or_throw(
        or_out_of_memory([&] { return save(path, tensors, metadata, *shared.value()); }));
}

LoadedFile load_file(const std::string& path, std::uint64_t memory_bytes,
                     std::shared_ptr<Reactor> reactor) {
    HuggingFaceStorageReader reader(path, {}, std::move(reactor));
    const Metadata metadata = value_or_throw(reader.read_metadata());
    std::uint64_t total = 0;
    for (const auto& [fqn, tensor] : metadata.tensors)
        total = round_up(total, tensor_alignment) +
                value_or_throw(byte_size(tensor.dtype, tensor.size));
    if (memory_bytes != 0 && total > memory_bytes)
        throw Exception({.code = Errc::checkpoint_over_budget,
                         .operation = "load file",
                         .file = path,
                         .detail = std::to_string(total) + " bytes of tensors, the limit is " +
                                   std::to_string(memory_bytes)});
    const std::shared_ptr<std::byte> memory = value_or_throw(io::allocate_huge(total));
    LoadedFile loaded;
    std::vector<LocalDestination> destinations;
    std::uint64_t at = 0;
    for (const auto& [fqn, tensor] : metadata.tensors) {
        at = round_up(at, tensor_alignment);
        const MutableTensorView view{.data = memory.get() + at,
                                     .dtype = tensor.dtype,
                                     .shape = tensor.size,
                                     .strides = {},
                                     .owner = memory};
        at += value_or_throw(byte_size(tensor.dtype, tensor.size));
        destinations.push_back({.fqn = fqn, .data = view});
        loaded.tensors.emplace(fqn, view);
    }
    DefaultLoadPlanner planner(std::move(destinations));
    const LoadPlan plan = value_or_throw(planner.create_local_plan(metadata));
    loaded.report = value_or_throw(reader.read_data(plan, planner));
    // The files of one checkpoint repeat each other's; the first of a key counts.
    for (const auto& [file, entries] : reader.file_metadata())
        for (const auto& entry : entries)
            if (std::ranges::find(loaded.metadata, entry.first,
                                  &std::pair<std::string, std::string>::first) ==
                loaded.metadata.end())
                loaded.metadata.push_back(entry);
    return loaded;
}

} // namespace safering
