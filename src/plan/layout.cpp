// See layout.hpp. Both layouts are the same work on "stored tensors", the entries of the files'
// headers: a full layout has one for every name, a sharded one for every item.
#include "plan/layout.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "large_memory.hpp"
#include "plan/box.hpp"
#include "plan/item_names.hpp"
#include "plan/sharding_info.hpp"
#include "plan/text.hpp"
#include "plan/tiling.hpp"
#include "safetensors/header.hpp"
#include "utf8.hpp"

namespace safering::plan {

namespace {

constexpr std::uint32_t none = ~std::uint32_t{0};

struct StoredTensor {
    const WriteItem* item; // the first of the tensor, or the chunk itself
    std::uint32_t file = none;
    std::uint64_t begin = 0; // in the file
};

// Shard number (0 in a full layout), then index: the order of the files.
using FileKey = std::pair<std::uint32_t, std::uint32_t>;

struct Draft {
    std::vector<StoredTensor> stored;
    // Parallel to the plans and their items: index into `stored`.
    std::vector<std::vector<std::uint32_t>> stored_of_item;
    // While the files are still being found: index into `keys`.
    std::vector<FileKey> keys;
};

std::unexpected<Error> item_error(Errc code, const WriteItem& item, std::string detail) {
    auto error = fail(code, "lay out checkpoint", std::move(detail));
    error.error().tensor = item.fqn;
    return error;
}

std::uint32_t largest_index(const LayoutOptions& options) {
    std::uint32_t largest = 1;
    for (const auto& [fqn, index] : options.fqn_to_index_mapping)
        largest = std::max(largest, index);
    return largest;
}

// For a sharded layout, whose metadata names tensors before write_header checks them.
Result<void> check_names(const ItemNames& names) {
    for (const WriteItem* item : names.first_item)
        if (const std::size_t at = find_invalid_utf8(item->fqn); at != std::string::npos)
            return item_error(Errc::plan_bad_name, *item,
                              fmt::format("expected UTF-8, found byte {:#04x} at {}",
                                          static_cast<unsigned char>(item->fqn.data()[at]), at));
    return {};
}

// Every item is a box of its tensor that is whole bytes.
Result<void> check_boxes(const std::vector<SavePlan>& plans) {
    for (const SavePlan& plan : plans)
        for (const WriteItem& item : plan.items) {
            const auto box =
                FileBox::make(item.dtype, item.size, item.chunk.offsets, item.chunk.sizes);
            if (!box) {
                Error error = box.error();
                error.tensor = item.fqn;
                return std::unexpected(std::move(error));
            }
        }
    return {};
}

// The output file index of every name.
Result<std::vector<std::uint32_t>> map_names(const ItemNames& names, const LayoutOptions& options) {
    const FqnToIndexMapping& mapping = options.fqn_to_index_mapping;
    std::vector<std::uint32_t> index_of(names.first_item.size(), 1);
    if (mapping.empty())
        return index_of;
    auto mapped = mapping.begin(); // both sides rise
    for (std::size_t n = 0; n < index_of.size(); ++n) {
        const WriteItem& item = *names.first_item[n];
        int order = -1;
        while (mapped != mapping.end() && (order = mapped->first.compare(item.fqn)) < 0)
            ++mapped;
        if (mapped == mapping.end() || order != 0)
            return item_error(Errc::plan_unmapped_tensor, item,
                              fmt::format("expected it among the {} names of the mapping; add it",
                                          mapping.size()));
        index_of[n] = mapped->second;
    }
    return index_of;
}

Draft draft_full(ItemNames names, const std::vector<std::uint32_t>& index_of) {
    Draft draft;
    draft.stored_of_item = std::move(names.number_of_item);
    reserve_large(draft.stored, names.first_item.size());
    draft.keys.reserve(names.first_item.size());
    for (std::size_t n = 0; n < names.first_item.size(); ++n) {
        draft.stored.push_back({names.first_item[n]});
        draft.keys.push_back({0, index_of[n]});
    }
    return draft;
}

Draft draft_sharded(const std::vector<SavePlan>& plans, const ItemNames& names,
                    const std::vector<std::uint32_t>& index_of, const LayoutOptions& options) {
    std::uint32_t next_shard = 1;
    for (const SavePlan& plan : plans)
        next_shard = std::max(next_shard, plan.rank + 2); // shards count from 1
    // Plans in order of rank, so that the further shards are numbered in it too.
    std::vector<std::uint32_t> order(plans.size());
    for (std::size_t p = 0; p < order.size(); ++p)
        order[p] = static_cast<std::uint32_t>(p);
    std::stable_sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
        return plans[a].rank < plans[b].rank;
    });

    Draft draft;
    draft.stored_of_item.resize(plans.size());
    std::vector<std::uint32_t> chunks_so_far(names.first_item.size());
    std::vector<std::uint32_t> shards; // of the current rank: its own, then the further ones
    for (std::size_t k = 0; k < order.size(); ++k) {
        const SavePlan& plan = plans[order[k]];
        if (k == 0 || plans[order[k - 1]].rank != plan.rank)
            shards.assign(1, options.first_rank + plan.rank + 1);
        auto& stored_of_item = draft.stored_of_item[order[k]];
        for (std::size_t i = 0; i < plan.items.size(); ++i) {
            const std::uint32_t number = names.number_of_item[order[k]][i];
            const std::uint32_t chunk = chunks_so_far[number]++;
            if (chunk == shards.size())
                shards.push_back(options.ranks == 0 ? next_shard++ : shards.back() + options.ranks);
            stored_of_item.push_back(static_cast<std::uint32_t>(draft.stored.size()));
            draft.stored.push_back({&plan.items[i]});
            draft.keys.push_back({shards[chunk], index_of[number]});
        }
        // For the next rank; only what was touched, as ranks times names may be too many.
        if (k + 1 == order.size() || plans[order[k + 1]].rank != plan.rank)
            for (std::size_t j = k + 1; j-- > 0 && plans[order[j]].rank == plan.rank;)
                for (const std::uint32_t number : names.number_of_item[order[j]])
                    chunks_so_far[number] = 0;
    }
    return draft;
}

std::vector<std::pair<std::string, std::string>>
file_metadata(const LayoutOptions& options, const std::vector<StoredTensor*>& stored) {
    std::map<std::string, std::string> entries(options.metadata.begin(), options.metadata.end());
    if (!options.format.empty())
        entries.try_emplace("format", options.format);
    if (options.layout == FileLayout::sharded) {
        ShardingInfo info;
        for (const StoredTensor* one : stored)
            info.add(one->item->fqn, one->item->chunk.offsets);
        entries["DCP_SHARDING_INFO"] = std::move(info).text();
        entries["DCP_VERSION"] = "1.0";
    }
    return {std::make_move_iterator(entries.begin()), std::make_move_iterator(entries.end())};
}

// Header and places of one file that holds `stored`.
Result<LayoutFile> lay_out_file(std::string file_name, const std::vector<StoredTensor*>& stored,
                                const LayoutOptions& options) {
    std::vector<safetensors::TensorEntryView> tensors;
    reserve_large(tensors, stored.size());
    for (const StoredTensor* one : stored) {
        const WriteItem& item = *one->item;
        const Shape& shape = options.layout == FileLayout::full ? item.size : item.chunk.sizes;
        tensors.push_back({item.fqn, item.dtype, {shape.data(), shape.size()}, {}});
    }
    const auto wrong = [&](Error error) {
        error.file = file_name;
        return std::unexpected(std::move(error));
    };
    std::vector<std::uint32_t> origin;
    if (auto assigned = safetensors::assign_offsets(tensors, &origin); !assigned)
        return wrong(std::move(assigned.error()));
    auto head = safetensors::write_header(tensors, file_metadata(options, stored),
                                          options.header_alignment);
    if (!head)
        return wrong(std::move(head.error()));
    const std::uint64_t data_begin = head->size();
    for (std::size_t t = 0; t < tensors.size(); ++t)
        stored[origin[t]]->begin = data_begin + tensors[t].data.begin;
    const std::uint64_t data_bytes = tensors.empty() ? 0 : tensors.back().data.end;
    return LayoutFile{{std::move(file_name), data_begin + data_bytes, data_begin},
                      std::move(*head)};
}

// Numbers the files in the order of their keys and lays them out.
Result<void> lay_out_files(Draft& draft, const LayoutOptions& options, Layout& layout) {
    std::map<FileKey, std::vector<StoredTensor*>> files;
    for (std::size_t s = 0; s < draft.stored.size(); ++s)
        files[draft.keys[s]].push_back(&draft.stored[s]);
    const std::uint32_t largest = largest_index(options);
    for (auto& [key, stored] : files) {
        auto file = lay_out_file(options.layout == FileLayout::full
                                     ? full_file_name(key.second, largest)
                                     : shard_file_name(key.first, key.second, largest),
                                 stored, options);
        if (!file)
            return std::unexpected(std::move(file.error()));
        for (StoredTensor* one : stored)
            one->file = static_cast<std::uint32_t>(layout.files.size());
        layout.total_size += file->file.file_bytes - file->file.data_begin;
        layout.files.push_back(std::move(*file));
    }
    return {};
}

} // namespace

Result<void> check_duplicates(const std::vector<SavePlan>& plans, const ItemNames& names) {
    std::size_t items = 0;
    for (const SavePlan& plan : plans)
        items += plan.items.size();
    if (items == names.first_item.size())
        return {};
    const ItemsByName groups = group_by_name(names);
    const auto item_at = [&](ItemReference reference) -> const WriteItem& {
        return plans[reference.plan].items[reference.item];
    };
    std::vector<ItemReference> filled;
    for (std::size_t n = 0; n + 1 < groups.begin.size(); ++n) {
        if (groups.begin[n + 1] - groups.begin[n] < 2)
            continue;
        filled.clear();
        for (std::size_t r = groups.begin[n]; r < groups.begin[n + 1]; ++r)
            if (element_count(item_at(groups.references[r]).chunk.sizes) != 0)
                filled.push_back(groups.references[r]);
        const auto by_offsets = [&](ItemReference a, ItemReference b) {
            return item_at(a).chunk.offsets < item_at(b).chunk.offsets;
        };
        std::stable_sort(filled.begin(), filled.end(), by_offsets);
        for (std::size_t i = 1; i < filled.size(); ++i)
            if (!by_offsets(filled[i - 1], filled[i]))
                return item_error(Errc::plan_duplicate_item, item_at(filled[i]),
                                  fmt::format("chunk {} is in the plans of ranks {} and {}",
                                              in_words(item_at(filled[i]).chunk),
                                              plans[filled[i - 1].plan].rank,
                                              plans[filled[i].plan].rank));
    }
    return {};
}

Result<Layout> plan_layout(const std::vector<SavePlan>& plans, const LayoutOptions& options) {
    auto names = number_names(plans, "lay out checkpoint");
    if (!names)
        return std::unexpected(std::move(names.error()));
    return plan_layout(plans, std::move(*names), options);
}

Result<Layout> plan_layout(const std::vector<SavePlan>& plans, ItemNames names,
                           const LayoutOptions& options) {
    const bool full = options.layout == FileLayout::full;
    if (auto good = full ? Result<void>() : check_names(names); !good)
        return std::unexpected(std::move(good.error()));
    if (auto good = check_boxes(plans); !good)
        return std::unexpected(std::move(good.error()));
    if (auto good = check_duplicates(plans, names); !good)
        return std::unexpected(std::move(good.error()));
    const auto index_of = map_names(names, options);
    if (!index_of)
        return std::unexpected(index_of.error());

    Draft draft = full ? draft_full(std::move(names), *index_of)
                       : draft_sharded(plans, names, *index_of, options);
    Layout layout;
    if (auto laid = lay_out_files(draft, options, layout); !laid)
        return std::unexpected(std::move(laid.error()));
    for (const auto& stored_of_item : draft.stored_of_item) {
        auto& placements = layout.placements.emplace_back();
        placements.reserve(stored_of_item.size());
        for (const std::uint32_t s : stored_of_item)
            placements.push_back({draft.stored[s].file, draft.stored[s].begin});
    }
    if (full) { // stored by name
        reserve_large(layout.weight_map, draft.stored.size());
        for (const StoredTensor& stored : draft.stored)
            layout.weight_map.emplace_hint(layout.weight_map.end(), stored.item->fqn, stored.file);
    }
    return layout;
}

} // namespace safering::plan
