#include "sharding.hpp"

#include <algorithm>
#include <bit>
#include <filesystem>
#include <set>
#include <span>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace safering::tools {

namespace {

std::string boxes_text(std::span<const ChunkStorageMetadata> boxes) {
    std::vector<std::size_t> grid;
    std::size_t cells = 1;
    for (std::size_t d = 0; d < boxes.front().offsets.size(); ++d) {
        std::set<std::uint64_t> places;
        for (const ChunkStorageMetadata& box : boxes)
            places.insert(box.offsets[d]);
        grid.push_back(places.size());
        cells *= places.size();
    }
    if (cells != boxes.size())
        return fmt::format("{} boxes", boxes.size());
    const auto cut = [](std::size_t parts) { return parts > 1; };
    if (std::ranges::count_if(grid, cut) == 1)
        return fmt::format("{} along {}", boxes.size(),
                           std::ranges::find_if(grid, cut) - grid.begin());
    return fmt::format("{} grid", fmt::join(grid, " x "));
}

} // namespace

std::uint64_t alignment(const StorageInfo& storage) {
    if (storage.offset == 0)
        return most_alignment;
    return std::min(most_alignment, std::uint64_t{1} << std::countr_zero(storage.offset));
}

std::uint64_t alignment(const TensorStorageMetadata& tensor) {
    std::uint64_t least = most_alignment;
    for (const StorageInfo& storage : tensor.storage)
        least = std::min(least, alignment(storage));
    return least;
}

std::string sharding_text(const CheckpointInfo& info, const NamedStorage& tensor) {
    const Chunks& chunks = tensor.second.chunks;
    if (chunks.size() > 1)
        return boxes_text({chunks.data(), chunks.size()});
    if (chunks.empty())
        return {};
    const auto saved = info.saved_boxes.find({tensor.first, chunks.front().offsets});
    return saved == info.saved_boxes.end() || saved->second.empty() ? ""
                                                                    : boxes_text(saved->second);
}

std::string file_name(const Metadata& metadata, const StorageInfo& storage) {
    return std::filesystem::path(metadata.files.at(storage.file)).filename().string();
}

} // namespace safering::tools
