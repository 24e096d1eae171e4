// The layout of a save: all ranks' items -> the output files, their headers, and each item's place. Pure.
// File names are those of PyTorch's HuggingFaceStorageWriter and of the Hugging Face Hub.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <safering/plan.hpp>

#include "plan/item_names.hpp"

namespace safering::plan {

/// fqn -> 1-based index of its output file.
using FqnToIndexMapping = std::map<std::string, std::uint32_t, std::less<>>;

struct LayoutOptions {
    FileLayout layout = FileLayout::full;
    /// Empty: one file, index 1.
    FqnToIndexMapping fqn_to_index_mapping{};
    /// Added to every file's __metadata__. The keys of DCP's (DCP_SHARDING_INFO, DCP_VERSION) are the
    /// layout's own in a sharded layout.
    std::vector<std::pair<std::string, std::string>> metadata{};
    /// Value of the key "format", which Hugging Face readers look for, where `metadata` lacks it; empty:
    /// it stays absent.
    std::string format = "pt";
    /// Where the plans are not those of all ranks: the rank of the first, and how many ranks there are.
    /// Further shards are then numbered apart from those of any other rank.
    std::uint32_t first_rank = 0;
    std::uint32_t ranks = 0;
    /// The data section starts at a multiple of this.
    std::uint64_t header_alignment = 4096;
};

struct LayoutFile {
    PlannedFile file;
    /// The file's first data_begin bytes.
    std::string head;
};

struct Layout {
    std::vector<LayoutFile> files;
    /// Parallel to the plans, then to their items; ItemPlacement::file indexes `files`.
    std::vector<std::vector<ItemPlacement>> placements;
    /// fqn, borrowed from the plans -> index into `files`; of a full layout only.
    boost::container::flat_map<std::string_view, std::uint32_t> weight_map;
    /// Bytes of all tensors.
    std::uint64_t total_size = 0;
};

/// full: model-{i:05}-of-{n:05}.safetensors, n the highest index of the mapping. sharded: one file a rank
/// and index, shard-{rank+1:05}-model-{i:05}-of-{n:05}.safetensors, with DCP_SHARDING_INFO; where one rank
/// holds several chunks of one fqn, the further ones go to files with further shard numbers, after those of
/// the ranks (a safetensors file can hold a name once). A mapped name that no rank saves is left out.
/// Files in order of (shard, index); one that nothing is in does not exist, so that a save of nothing has
/// no file. A tensor or a chunk of no bytes is in the header like any other.
/// Plans must have passed create_global_plan (or DCP's dedup); that chunks cover their tensors is not
/// checked again here. O(n log n).
/// Errors: plan_unmapped_tensor, plan_duplicate_item (one chunk twice, bytes in it), plan_shape_mismatch,
/// those of FileBox::make for an item that is not a box of its tensor, and those of
/// safetensors::assign_offsets and write_header.
Result<Layout> plan_layout(const std::vector<SavePlan>& plans, const LayoutOptions& options);
/// The same, with the plans' names as number_names gave them.
Result<Layout> plan_layout(const std::vector<SavePlan>& plans, ItemNames names,
                           const LayoutOptions& options);

/// Whether no chunk is there twice, but for those without elements. Errors: plan_duplicate_item.
Result<void> check_duplicates(const std::vector<SavePlan>& plans, const ItemNames& names);

/// "model-00001-of-00002.safetensors"
std::string full_file_name(std::uint32_t index, std::uint32_t largest);
/// "shard-00001-model-00001-of-00002.safetensors"; `shard` is 1-based.
std::string shard_file_name(std::uint32_t shard, std::uint32_t index, std::uint32_t largest);
/// Whether a name matches, in full, one of the two above or "model.safetensors": a name that only a
/// checkpoint's own data file has.
bool is_checkpoint_file_name(std::string_view name);

} // namespace safering::plan
