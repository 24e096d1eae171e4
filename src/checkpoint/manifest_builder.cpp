#include "checkpoint/manifest_builder.hpp"

#include <algorithm>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "checkpoint/planned_box.hpp"
#include "checkpoint/strict_json.hpp"

namespace safering::checkpoint {

namespace {

std::unexpected<Error> results_fault(Errc code, const std::string& fqn, std::string detail) {
    return std::unexpected(Error{.code = code,
                                 .operation = "check write results",
                                 .tensor = fqn,
                                 .detail = std::move(detail)});
}

// One item's extent on its way into a file's list.
struct Entry {
    std::uint32_t file;
    std::uint64_t tensor_begin;
    const WriteItem* item;
    WriteResult* result;
};

bool is_whole(const WriteItem& item) {
    return item.chunk.sizes == item.size;
}

Result<std::vector<WriteResults*>> by_rank(const std::vector<SavePlan>& plans,
                                           std::vector<WriteResults>& results) {
    std::vector<WriteResults*> ranks(plans.size(), nullptr);
    for (WriteResults& result : results) {
        if (result.rank >= plans.size())
            return results_fault(Errc::checkpoint_results_mismatch, {},
                                 fmt::format("results of rank {}, the plan has {} ranks",
                                             result.rank, plans.size()));
        if (std::exchange(ranks[result.rank], &result) != nullptr)
            return results_fault(Errc::checkpoint_results_mismatch, {},
                                 fmt::format("results of rank {} came twice", result.rank));
    }
    for (std::size_t rank = 0; rank < plans.size(); ++rank)
        if (ranks[rank] == nullptr && !plans[rank].items.empty())
            return results_fault(Errc::checkpoint_results_mismatch, {},
                                 fmt::format("results of rank {} are missing", rank));
    return ranks;
}

Result<void> check_rank(const SavePlan& plan, const WriteResults& results) {
    const StoragePlan& storage = *plan.storage;
    if (results.attempt != storage.attempt)
        return results_fault(Errc::checkpoint_foreign_attempt, {},
                             fmt::format("results of rank {} are of attempt {}, this one is {}",
                                         plan.rank, escaped(results.attempt), storage.attempt));
    if (results.items.size() != plan.items.size())
        return results_fault(Errc::checkpoint_results_mismatch, {},
                             fmt::format("rank {} was to write {} items and reports {}", plan.rank,
                                         plan.items.size(), results.items.size()));
    for (std::size_t i = 0; i < plan.items.size(); ++i) {
        const WriteResult& result = results.items[i];
        const ItemPlacement& placement = storage.placements[i];
        const bool same_file =
            result.storage.file < results.files.size() &&
            results.files[result.storage.file] == storage.files[placement.file].name;
        if (result.index != plan.items[i].index() || !same_file ||
            result.storage.offset != placement.tensor_begin)
            return results_fault(
                Errc::checkpoint_results_mismatch, plan.items[i].fqn,
                fmt::format("item {} of rank {} is reported as \"{}\" in another place", i,
                            plan.rank, escaped(result.index.fqn)));
    }
    return {};
}

// What the result says of its bytes against what the plan's geometry says.
Result<void> check_bytes(const SavePlan& plan, std::size_t i, const WriteResult& result) {
    const WriteItem& item = plan.items[i];
    auto box = file_box(plan, item);
    if (!box)
        return std::unexpected(std::move(box.error()));
    auto length = byte_size(item.dtype, stored_box(plan, item).stored);
    if (!length)
        return std::unexpected(std::move(length.error()));
    if (result.size_in_bytes != box->bytes() || result.storage.length != *length)
        return results_fault(Errc::checkpoint_results_mismatch, item.fqn,
                             fmt::format("rank {} reports {} bytes, {} were planned", plan.rank,
                                         result.size_in_bytes, box->bytes()));
    const std::uint64_t digests = cell_count(
        box->hull().shifted(plan.storage->placements[i].tensor_begin), plan.storage->chunk_bytes);
    if (!result.digests.empty() && result.digests.size() != digests)
        return results_fault(Errc::checkpoint_results_mismatch, item.fqn,
                             fmt::format("rank {} reports {} digests, {} were planned", plan.rank,
                                         result.digests.size(), digests));
    return {};
}

} // namespace

Result<Manifest> build_manifest(const std::vector<SavePlan>& plans, const plan::Layout& layout,
                                std::vector<WriteResults>& results) {
    auto ranks = by_rank(plans, results);
    if (!ranks)
        return std::unexpected(std::move(ranks.error()));
    Manifest manifest;
    std::vector<Entry> entries;
    std::size_t with_digests = 0;
    for (std::size_t rank = 0; rank < plans.size(); ++rank) {
        const SavePlan& plan = plans[rank];
        manifest.attempt = plan.storage->attempt;
        manifest.layout = plan.storage->layout;
        manifest.chunk_bytes = plan.storage->chunk_bytes;
        if ((*ranks)[rank] == nullptr)
            continue;
        if (auto checked = check_rank(plan, *(*ranks)[rank]); !checked)
            return std::unexpected(std::move(checked.error()));
        for (std::size_t i = 0; i < plan.items.size(); ++i) {
            const WriteItem& item = plan.items[i];
            WriteResult& result = (*ranks)[rank]->items[i];
            if (manifest.layout == FileLayout::sharded)
                manifest.tensors.try_emplace(item.fqn, ManifestTensor{item.dtype, item.size});
            if (auto checked = check_bytes(plan, i, result); !checked)
                return std::unexpected(std::move(checked.error()));
            if (result.size_in_bytes == 0)
                continue;
            with_digests += result.digests.empty() ? 0 : 1;
            const ItemPlacement& placement = layout.placements[rank][i];
            entries.push_back({placement.file, placement.tensor_begin, &item, &result});
        }
    }
    if (with_digests != 0 && with_digests != entries.size())
        return results_fault(
            Errc::checkpoint_results_mismatch, {},
            "some ranks took digests and others did not; use the same options on all");
    manifest.digests = with_digests == entries.size();
    std::ranges::sort(entries, [](const Entry& a, const Entry& b) {
        return std::tie(a.file, a.tensor_begin, a.item->chunk.offsets) <
               std::tie(b.file, b.tensor_begin, b.item->chunk.offsets);
    });
    for (const plan::LayoutFile& file : layout.files)
        manifest.files.push_back({.name = file.file.name,
                                  .file_bytes = file.file.file_bytes,
                                  .data_begin = file.file.data_begin,
                                  .head_digest = digest_of(file.head),
                                  .tensors = {}});
    for (std::size_t i = 0; i < entries.size(); ++i) {
        const Entry& entry = entries[i];
        auto& tensors = manifest.files[entry.file].tensors;
        if (i == 0 || entries[i - 1].file != entry.file ||
            entries[i - 1].tensor_begin != entry.tensor_begin)
            tensors.emplace_back();
        const bool whole = manifest.layout == FileLayout::sharded || is_whole(*entry.item);
        tensors.back().push_back({.box = whole ? ChunkStorageMetadata{} : entry.item->chunk,
                                  .digests = std::move(entry.result->digests)});
    }
    return manifest;
}

} // namespace safering::checkpoint
