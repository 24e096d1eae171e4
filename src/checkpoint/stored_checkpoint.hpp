// A checkpoint that was opened for reading: its files, their tables of tensors, and what the manifest says
// about their bytes. Everything is checked that can be checked without reading tensor data.
#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <safering/checkpoint.hpp>

#include "checkpoint/index.hpp"
#include "checkpoint/manifest.hpp"
#include "checkpoint/perform.hpp"
#include "safetensors/header.hpp"

namespace safering::checkpoint {

struct StoredFile {
    std::string name;
    /// Where it is now: in the checkpoint, or still in the attempt of an unfinished switch.
    std::string path;
    OpenFile file;
    safetensors::Header header;
    /// Parallel to header.tensors (none for an empty tensor); empty where there are no digests.
    FileExtents extents;
    /// Where they lie in the file, parallel to them: what of it each can have.
    std::vector<ByteRange> hulls;

    std::uint64_t file_bytes() const { return file.status().size; }
    ByteRange tensor_range(std::size_t tensor) const {
        return header.tensors[tensor].data.shifted(header.data_begin);
    }
};

struct StoredCheckpoint {
    std::string path;
    CheckpointSource source = CheckpointSource::directory;
    std::string attempt;
    bool digests = false;
    /// Of the manifest; 0 without one.
    std::uint64_t chunk_bytes = 0;
    std::vector<StoredFile> files;
    /// Names of all that belong to it, opened or not.
    std::set<std::string> listed;
    Metadata metadata;
    std::vector<std::string> notes;
};

/// Opens and checks. With `findings`, faults of single files and tensors are added to it and the rest is
/// opened; without, the first is the Error. Blocks.
Result<StoredCheckpoint> open_checkpoint(Reactor& reactor, const std::string& path, bool strict,
                                         std::vector<Error>* findings = nullptr,
                                         ShardingInfo sharding_info = ShardingInfo::apply);

/// For who looks at what is there: `ignore` for a file alone, whose other shards nobody knows, else `apply`. Blocks.
ShardingInfo sharding_info_for(Reactor& reactor, const std::string& path);
/// Whether a file says that its tensors may be parts of some.
bool has_sharding_info(const StoredFile& file);

/// Where a checkpoint's files are: names, each with its path.
struct FileList {
    CheckpointSource source = CheckpointSource::directory;
    std::vector<std::pair<std::string, std::string>> files;
    /// Whether the list had others, that are not there.
    bool missing = false;
    std::optional<Manifest> manifest;
    /// Of what could be read under its name.
    std::optional<std::uint64_t> manifest_digest;
    /// Of a switch that could not be finished and is read through; else empty.
    std::string redo_attempt;
    WeightMap weight_map;
    std::vector<std::string> notes;
};
/// Finishes a switch that was cut off (or reads through it, where this process may not write), then finds
/// the files by manifest, index or name. Errors with `findings`: as above, as far as a list can be made.
Result<FileList> list_checkpoint(Reactor& reactor, const std::string& path, bool strict,
                                 std::vector<Error>* findings);

/// Whether the checkpoint is still the one that was listed, no save having replaced it: what was opened since belongs
/// together then.
bool is_current(Reactor& reactor, const std::string& path, const FileList& list);

/// Chunks of every tensor, from the files' tables and sharding infos. Pure.
Result<Metadata> collect_metadata(const std::vector<StoredFile>& files, const FileList& list,
                                  std::vector<Error>* findings, ShardingInfo sharding_info);

/// Adds to findings, or makes it the result.
inline Result<void> report(std::vector<Error>* findings, Error error) {
    if (findings == nullptr)
        return std::unexpected(std::move(error));
    findings->push_back(std::move(error));
    return {};
}

} // namespace safering::checkpoint
