#include "checkpoint/manifest_builder.hpp"

#include <algorithm>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "checkpoint/planned_box.hpp"
#include "checkpoint/strict_json.hpp"
#include "large_memory.hpp"

namespace safering::checkpoint {

namespace {

constexpr std::uint64_t hex_digits = 16; // of a digest

std::unexpected<Error> results_fault(Errc code, std::string_view fqn, std::string detail) {
    return std::unexpected(Error{.code = code,
                                 .operation = "check write results",
                                 .tensor = std::string(fqn),
                                 .detail = std::move(detail)});
}

} // namespace

ManifestBuilder::ManifestBuilder(const std::vector<SavePlan>& plans, const plan::Layout& layout) {
    for (const plan::LayoutFile& file : layout.files)
        manifest_.files.push_back({.name = file.file.name,
                                   .file_bytes = file.file.file_bytes,
                                   .data_begin = file.file.data_begin,
                                   .head_digest = digest_of(file.head),
                                   .extents = {}});
    std::size_t items = 0, name_bytes = 0;
    for (const SavePlan& plan : plans)
        for (const WriteItem& item : plan.items)
            ++items, name_bytes += item.fqn.size();
    reserve_large(items_, items);
    reserve_large(names_, name_bytes);
    for (std::size_t rank = 0; rank < plans.size(); ++rank) {
        const SavePlan& plan = plans[rank];
        manifest_.attempt = plan.storage->attempt;
        manifest_.layout = plan.storage->layout;
        manifest_.chunk_bytes = plan.storage->chunk_bytes;
        rank_begin_.push_back(items_.size());
        for (std::size_t i = 0; i < plan.items.size(); ++i) {
            const WriteItem& item = plan.items[i];
            const ItemPlacement& placement = layout.placements[rank][i];
            const auto box = file_box(plan, item);
            const auto length = byte_size(item.dtype, stored_box(plan, item).stored);
            SAFERING_ASSERT(box && length); // both made when the files were laid out
            const std::uint64_t cells =
                cell_count(box->hull().shifted(placement.tensor_begin), manifest_.chunk_bytes);
            digest_text_bytes_ += cells * hex_digits;
            names_ += item.fqn;
            std::uint32_t place = whole_tensor;
            if (item.chunk.sizes != item.size) {
                place = static_cast<std::uint32_t>(boxes_.size());
                boxes_.push_back(item.chunk);
            }
            items_.push_back({placement.file, static_cast<std::uint32_t>(cells),
                              placement.tensor_begin, box->bytes(), *length, names_.size(), place,
                              static_cast<std::uint32_t>(item.size.size())});
            if (manifest_.layout == FileLayout::sharded)
                manifest_.tensors.try_emplace(item.fqn.str(),
                                              ManifestTensor{item.dtype, item.size});
        }
    }
    rank_begin_.push_back(items_.size());
}

std::string_view ManifestBuilder::name_of(std::size_t item) const {
    const std::size_t begin = item == 0 ? 0 : items_[item - 1].name_end;
    return std::string_view(names_).substr(begin, items_[item].name_end - begin);
}

bool ManifestBuilder::is_planned(std::size_t item, const MetadataIndex& index) const {
    if (index.fqn != name_of(item))
        return false;
    if (items_[item].box != whole_tensor)
        return index.offset == boxes_[items_[item].box].offsets;
    return index.offset.size() == items_[item].dimensions &&
           std::ranges::all_of(index.offset, [](std::uint64_t offset) { return offset == 0; });
}

Result<std::vector<const WriteResults*>>
ManifestBuilder::by_rank(const std::vector<WriteResults>& results) const {
    const std::size_t rank_count = rank_begin_.size() - 1;
    std::vector<const WriteResults*> ranks(rank_count, nullptr);
    for (const WriteResults& result : results) {
        if (result.rank >= rank_count)
            return results_fault(
                Errc::checkpoint_results_mismatch, {},
                fmt::format("results of rank {}, the plan has {} ranks", result.rank, rank_count));
        if (std::exchange(ranks[result.rank], &result) != nullptr)
            return results_fault(Errc::checkpoint_results_mismatch, {},
                                 fmt::format("results of rank {} came twice", result.rank));
    }
    for (std::size_t rank = 0; rank < rank_count; ++rank)
        if (ranks[rank] == nullptr && rank_begin_[rank] != rank_begin_[rank + 1])
            return results_fault(Errc::checkpoint_results_mismatch, {},
                                 fmt::format("results of rank {} are missing", rank));
    return ranks;
}

Result<void> ManifestBuilder::check_rank(std::uint32_t rank, const WriteResults& results) const {
    if (results.attempt != manifest_.attempt)
        return results_fault(Errc::checkpoint_foreign_attempt, {},
                             fmt::format("results of rank {} are of attempt {}, this one is {}",
                                         rank, escaped(results.attempt), manifest_.attempt));
    const std::size_t begin = rank_begin_[rank];
    const std::size_t items = rank_begin_[rank + 1] - begin;
    if (results.items.size() != items)
        return results_fault(Errc::checkpoint_results_mismatch, {},
                             fmt::format("rank {} was to write {} items and reports {}", rank,
                                         items, results.items.size()));
    for (std::size_t i = 0; i < items; ++i) {
        const Item& item = items_[begin + i];
        const WriteResult& result = results.items[i];
        const bool same_file =
            result.storage.file < results.files.size() &&
            results.files[result.storage.file] == manifest_.files[item.file].name;
        if (!is_planned(begin + i, result.index) || !same_file ||
            result.storage.offset != item.tensor_begin)
            return results_fault(
                Errc::checkpoint_results_mismatch, name_of(begin + i),
                fmt::format("item {} of rank {} is reported as \"{}\" in another place", i, rank,
                            escaped(result.index.fqn)));
        if (auto checked = check_bytes(rank, begin + i, result); !checked)
            return checked;
    }
    return {};
}

// What the result says of its bytes against what the plan's geometry says.
Result<void> ManifestBuilder::check_bytes(std::uint32_t rank, std::size_t item,
                                          const WriteResult& result) const {
    const Item& planned = items_[item];
    if (result.size_in_bytes != planned.bytes || result.storage.length != planned.length)
        return results_fault(Errc::checkpoint_results_mismatch, name_of(item),
                             fmt::format("rank {} reports {} bytes, {} were planned", rank,
                                         result.size_in_bytes, planned.bytes));
    if (!result.digests.empty() && result.digests.size() != planned.cells)
        return results_fault(Errc::checkpoint_results_mismatch, name_of(item),
                             fmt::format("rank {} reports {} digests, {} were planned", rank,
                                         result.digests.size(), planned.cells));
    return {};
}

// Of every item that other ranks wrote cells of, the digests that they and its own rank report, each once.
Result<void> ManifestBuilder::join_pieces(const std::vector<const WriteResults*>& ranks) {
    std::vector<std::pair<const ExchangedPiece*, std::uint32_t>> pieces; // and who reports it
    for (std::uint32_t rank = 0; rank < ranks.size(); ++rank)
        for (std::size_t p = 0; ranks[rank] != nullptr && p < ranks[rank]->pieces.size(); ++p)
            pieces.emplace_back(&ranks[rank]->pieces[p], rank);
    std::ranges::sort(pieces, {}, [](const auto& piece) {
        return std::tie(piece.first->rank, piece.first->item, piece.first->cell);
    });
    auto next = pieces.begin();
    for (std::uint32_t rank = 0; rank < ranks.size(); ++rank)
        for (std::size_t i = 0; ranks[rank] != nullptr && i < ranks[rank]->items.size(); ++i) {
            const WriteResult& result = ranks[rank]->items[i];
            const std::size_t item = rank_begin_[rank] + i;
            Digests digests = result.handed_over != 0 ? result.digests : Digests();
            std::uint32_t found = 0, last = 0;
            for (; next != pieces.end() && next->first->rank == rank && next->first->item == i;
                 ++next, ++found) {
                const ExchangedPiece& piece = *next->first;
                if (piece.cell >= items_[item].cells || (found != 0 && piece.cell == last))
                    return results_fault(
                        Errc::checkpoint_results_mismatch, name_of(item),
                        fmt::format("rank {} reports cell {} of rank {}'s item, which it "
                                    "was not to write, or twice",
                                    next->second, piece.cell, rank));
                last = piece.cell;
                if (piece.cell < digests.size())
                    digests[piece.cell] = piece.digest;
            }
            if (found != result.handed_over)
                return results_fault(
                    Errc::checkpoint_results_mismatch, name_of(item),
                    fmt::format("rank {} handed over {} cells, other ranks report {}", rank,
                                result.handed_over, found));
            if (found != 0)
                joined_.emplace(item, std::move(digests));
        }
    if (next != pieces.end())
        return results_fault(Errc::checkpoint_results_mismatch, {},
                             fmt::format("rank {} reports a piece of item {} of rank {}, which "
                                         "is not in the plan",
                                         next->second, next->first->item, next->first->rank));
    return {};
}

Result<Manifest> ManifestBuilder::build(const std::vector<WriteResults>& results) {
    auto ranks = by_rank(results);
    if (!ranks)
        return std::unexpected(std::move(ranks.error()));
    for (std::uint32_t rank = 0; rank < ranks->size(); ++rank)
        if ((*ranks)[rank] != nullptr)
            if (auto checked = check_rank(rank, *(*ranks)[rank]); !checked)
                return std::unexpected(std::move(checked.error()));
    if (auto joined = join_pieces(*ranks); !joined)
        return std::unexpected(std::move(joined.error()));
    std::vector<Entry> entries;
    entries.reserve(items_.size());
    std::size_t with_digests = 0;
    for (std::uint32_t rank = 0; rank < ranks->size(); ++rank) {
        if ((*ranks)[rank] == nullptr)
            continue;
        for (std::size_t i = rank_begin_[rank]; i < rank_begin_[rank + 1]; ++i) {
            const auto joined = joined_.find(i);
            const Digests& digests = joined != joined_.end()
                                         ? joined->second
                                         : (*ranks)[rank]->items[i - rank_begin_[rank]].digests;
            if (items_[i].bytes == 0)
                continue;
            with_digests += digests.empty() ? 0 : 1;
            entries.push_back({i, &digests});
        }
    }
    if (with_digests != 0 && with_digests != entries.size())
        return results_fault(
            Errc::checkpoint_results_mismatch, {},
            "some ranks took digests and others did not; use the same options on all");
    manifest_.digests = with_digests == entries.size();
    const auto in_order = [&](const Entry& a, const Entry& b) {
        const Item &x = items_[a.item], &y = items_[b.item];
        if (std::tie(x.file, x.tensor_begin) != std::tie(y.file, y.tensor_begin))
            return std::tie(x.file, x.tensor_begin) < std::tie(y.file, y.tensor_begin);
        // Two parts of one tensor, so that neither is whole.
        return a.item != b.item && boxes_[x.box].offsets < boxes_[y.box].offsets;
    };
    if (!std::ranges::is_sorted(entries, in_order))
        std::ranges::sort(entries, in_order);
    const Item* last = nullptr;
    for (const Entry& entry : entries) {
        const Item& item = items_[entry.item];
        FileExtents& extents = manifest_.files[item.file].extents;
        if (last == nullptr || last->file != item.file || last->tensor_begin != item.tensor_begin)
            extents.add_tensor();
        last = &item;
        const bool whole = manifest_.layout == FileLayout::sharded || item.box == whole_tensor;
        extents.add({whole ? nullptr : &boxes_[item.box], *entry.digests});
    }
    return std::move(manifest_);
}

} // namespace safering::checkpoint
