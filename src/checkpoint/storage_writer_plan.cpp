// The planning of a HuggingFaceStorageWriter: what is checked before anything is made, and which rank writes what.
#include <algorithm>
#include <bit>
#include <map>
#include <utility>

#include <fmt/format.h>

#include "checkpoint/commit_part.hpp"
#include "checkpoint/index.hpp"
#include "checkpoint/perform.hpp"
#include "checkpoint/storage_writer_impl.hpp"
#include "io/trace.hpp"
#include "plan/exchange_plan.hpp"
#include "plan/layout.hpp"

namespace safering {

using namespace checkpoint;

namespace {

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

Result<void> HuggingFaceStorageWriter::Impl::check_parent(Reactor& running) {
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
        return std::unexpected(
            Error{.code = std::make_error_code(std::errc::cross_device_link),
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
    if (auto fits = check_record_size(index_name, begun.index.size()); !fits)
        return std::unexpected(std::move(fits.error()));
    if (options.digests && !options.alone)
        if (auto fits = check_record_size(manifest_name, begun.manifest.digest_text_bytes()); !fits)
            return std::unexpected(std::move(fits.error()));
    // Last, as there is something to abort from here on.
    auto heads = create_attempt_directory(running, directory, std::move(layout->files));
    if (!heads)
        return std::unexpected(std::move(heads.error()));
    begun.heads = std::move(*heads);
    attempt = std::move(begun);
    return plans;
}

} // namespace safering
