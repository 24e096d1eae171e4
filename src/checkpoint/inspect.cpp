#include <safering/checkpoint.hpp>

#include "checkpoint/stored_checkpoint.hpp"

namespace safering {

using namespace checkpoint;

namespace {

// Stored tensors by where they lie: the file, and the first byte in it.
std::map<MetadataIndex, std::vector<ChunkStorageMetadata>>
saved_boxes(const StoredCheckpoint& checkpoint) {
    std::map<std::pair<std::uint32_t, std::uint64_t>, std::vector<ChunkStorageMetadata>> by_place;
    for (std::uint32_t f = 0; f < checkpoint.files.size(); ++f) {
        const StoredFile& file = checkpoint.files[f];
        for (std::size_t t = 0; t < file.extents.tensors(); ++t) {
            if (file.extents.count(t) < 2)
                continue;
            auto& boxes = by_place[{f, file.tensor_range(t).begin}];
            for (std::size_t e = file.extents.first(t); e < file.extents.first(t + 1); ++e)
                if (const auto* box = file.extents.at(e).box)
                    boxes.push_back(*box);
        }
    }
    std::map<MetadataIndex, std::vector<ChunkStorageMetadata>> out;
    for (const auto& [fqn, tensor] : checkpoint.metadata.tensors)
        for (std::size_t i = 0; i < tensor.chunks.size(); ++i) {
            const StorageInfo& storage = tensor.storage.at(i);
            const auto found = by_place.find({storage.file, storage.offset});
            if (found != by_place.end() && storage.length != 0)
                out.emplace(MetadataIndex{fqn, tensor.chunks[i].offsets}, std::move(found->second));
        }
    return out;
}

} // namespace

std::string_view name(CheckpointSource source) {
    switch (source) {
    case CheckpointSource::single_file: return "single file";
    case CheckpointSource::manifest: return "manifest";
    case CheckpointSource::index: return "index";
    case CheckpointSource::directory: return "directory";
    }
    return "unknown";
}

Result<CheckpointInfo> inspect_checkpoint(const std::string& path, Reactor& reactor,
                                          const ReaderOptions& options) {
    auto opened =
        open_checkpoint(reactor, path, options.strict, nullptr, sharding_info_for(reactor, path));
    if (!opened)
        return std::unexpected(std::move(opened.error()));
    CheckpointInfo info{.path = path,
                        .source = opened->source,
                        .attempt = opened->attempt,
                        .digests = opened->digests,
                        .files = {},
                        .metadata = {},
                        .saved_boxes = saved_boxes(*opened)};
    info.metadata = std::move(opened->metadata);
    for (const StoredFile& file : opened->files) {
        info.files.push_back({.name = file.name,
                              .file_bytes = file.file_bytes(),
                              .data_begin = file.header.data_begin,
                              .tensors = file.header.tensors.size(),
                              .metadata = file.header.metadata});
        info.tensor_bytes += file.file_bytes() - file.header.data_begin;
    }
    return info;
}

} // namespace safering
