// safering.manifest.json: what a save wrote, so that a load can tell whole from torn and changed from kept.
// Pure.
//
// {"safering_manifest":1, "attempt":"<32 hex>", "layout":"full"|"sharded", "digest":"xxh3-64"|"none",
//  "chunk_bytes":N,
//  "files":[{"name", "size", "head":<bytes before the data>, "head_digest":"<16 hex>",
//            "extents":[...]}],
//  "tensors":{fqn:[dtype, [global shape]]}     (sharded only; a full file's header has the shape)
//  "index":{"size", "digest"}                  (full only)
//  "xxh3":"<16 hex>"}                          digest of everything before it
// `extents` has an entry for each tensor of the file that is not empty, in offset order: the digests of the
// tensor where one item wrote it whole, else a list of [offsets, sizes, digests], one an item. Digests are 16
// hex digits for each chunk_bytes cell of the file that the item's span touches.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/file_extents.hpp"

namespace safering::checkpoint {

struct ManifestFile {
    std::string name{};
    std::uint64_t file_bytes = 0;
    std::uint64_t data_begin = 0;
    std::uint64_t head_digest = 0;
    /// Of each tensor that is not empty, in offset order.
    FileExtents extents{};

    friend bool operator==(const ManifestFile&, const ManifestFile&) = default;
};

struct ManifestTensor {
    Dtype dtype = Dtype::u8;
    Shape size{};

    friend bool operator==(const ManifestTensor&, const ManifestTensor&) = default;
};

struct ManifestIndex {
    std::uint64_t file_bytes = 0;
    std::uint64_t digest = 0;

    friend bool operator==(const ManifestIndex&, const ManifestIndex&) = default;
};

struct Manifest {
    std::string attempt{};
    FileLayout layout = FileLayout::full;
    bool digests = true;
    std::uint64_t chunk_bytes = 0;
    std::vector<ManifestFile> files{};
    /// By name; of a sharded layout only.
    std::map<std::string, ManifestTensor, std::less<>> tensors{};
    std::optional<ManifestIndex> index{};

    friend bool operator==(const Manifest&, const Manifest&) = default;
};

std::string to_text(const Manifest& manifest);
/// Errors: checkpoint_bad_manifest, checkpoint_unsafe_name. `file` is for messages.
Result<Manifest> parse_manifest(std::string_view text, const std::string& file);

/// Cells of `chunk_bytes` that absolute bytes `hull` of a file touch: how many digests an item has.
std::uint64_t cell_count(ByteRange hull, std::uint64_t chunk_bytes);

} // namespace safering::checkpoint
