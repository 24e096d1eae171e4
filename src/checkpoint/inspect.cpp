#include <safering/checkpoint.hpp>

#include "checkpoint/stored_checkpoint.hpp"

namespace safering {

using namespace checkpoint;

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
    auto opened = open_checkpoint(reactor, path, options.strict);
    if (!opened)
        return std::unexpected(std::move(opened.error()));
    CheckpointInfo info{.path = path,
                        .source = opened->source,
                        .attempt = opened->attempt,
                        .digests = opened->digests,
                        .files = {},
                        .metadata = std::move(opened->metadata)};
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
