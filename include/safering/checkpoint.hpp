// Looking at, checking and rewriting whole checkpoints; what the command `safering` calls.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include <safering/storage_reader.hpp>
#include <safering/storage_writer.hpp>

namespace safering {

/// By what a checkpoint's files were found.
enum class CheckpointSource : std::uint8_t {
    single_file,
    manifest,  ///< safering.manifest.json
    index,     ///< model.safetensors.index.json
    directory, ///< every *.safetensors
};
SAFERING_API std::string_view name(CheckpointSource source);

struct CheckpointFileInfo {
    std::string name{};
    std::uint64_t file_bytes = 0;
    std::uint64_t data_begin = 0;
    std::uint64_t tensors = 0;
    std::vector<std::pair<std::string, std::string>> metadata{};
};

struct CheckpointInfo {
    std::string path{};
    CheckpointSource source = CheckpointSource::directory;
    /// Of the save that wrote it; empty without a manifest.
    std::string attempt{};
    /// Whether the manifest holds digests of the data.
    bool digests = false;
    std::uint64_t tensor_bytes = 0;
    std::vector<CheckpointFileInfo> files{};
    Metadata metadata{};
    /// Of stored tensors that several items of the save wrote, with digests: the boxes of those items, in the stored
    /// tensor, by name and place (that of the chunk in Metadata).
    std::map<MetadataIndex, std::vector<ChunkStorageMetadata>> saved_boxes{};
};

/// Reads headers, manifest and index. Errors as HuggingFaceStorageReader::read_metadata.
SAFERING_API Result<CheckpointInfo> inspect_checkpoint(const std::string& path, Reactor& reactor,
                                                       const ReaderOptions& options = {});

struct VerifyReport {
    /// What is wrong; empty means that everything that could be checked is right.
    std::vector<Error> findings{};
    /// What could not be checked, and why.
    std::vector<std::string> unchecked{};
    CheckpointSource source = CheckpointSource::directory;
    std::uint64_t files = 0;
    std::uint64_t read_bytes = 0;
    std::uint64_t verified_bytes = 0;
    /// Of all files together.
    WorkReport work{};
};

struct VerifyOptions {
    bool strict = false;
    std::function<void(std::uint64_t, std::uint64_t)> progress{};
};

/// Checks manifest, index, headers, sizes, coverage, and every digest; goes on after a finding. The Error
/// of the Result is for what keeps it from looking (no such path; or no permission, memory or descriptor is all that
/// was found, which says nothing of the checkpoint).
SAFERING_API Result<VerifyReport> verify_checkpoint(const std::string& path, Reactor& reactor,
                                                    const VerifyOptions& options = {});

/// How a tensor of two checkpoints differs.
struct TensorDifference {
    enum class Kind : std::uint8_t { only_in_first, only_in_second, dtype, shape, values };
    Kind kind = Kind::values;
    std::string fqn{};
    /// "F32 and BF16", "[2, 3] and [3, 2]", "5 of 6 elements, first at [0, 1]".
    std::string detail{};
};

struct CompareReport {
    /// By name; empty where the checkpoints hold the same.
    std::vector<TensorDifference> differences{};
    /// Tensors that both have with one dtype and shape.
    std::uint64_t tensors = 0;
    /// Bytes of those whose digests in both manifests are the same, which are not read; and of those that were
    /// read from both.
    std::uint64_t digest_bytes = 0;
    std::uint64_t read_bytes = 0;
};

struct CompareOptions {
    /// Names, dtypes and shapes only, or also the bytes of tensors.
    bool values = true;
    /// Do not take the word of two manifests; read all bytes.
    bool read_all = false;
    /// Memory for tensor data, at most.
    std::uint64_t memory_bytes = std::uint64_t{64} << 20;
    std::function<void(std::uint64_t, std::uint64_t)> progress{};
};

/// What two checkpoints hold differently, whatever their files and sharding are. Values are compared by their
/// bytes (so a NaN is equal to itself, and 0 is not -0). Errors: as HuggingFaceStorageReader::read_metadata and
/// read_data.
SAFERING_API Result<CompareReport> compare_checkpoints(const std::string& first,
                                                       const std::string& second, Reactor& reactor,
                                                       const CompareOptions& options = {});

/// A rule for names. `prefix`: what begins with `from` begins with `to` instead. `regex`: what `from` (ECMAScript,
/// as in std::regex) finds anywhere in a name becomes `to`, where $1 is the first group; once, or each time.
struct Rename {
    enum class Kind : std::uint8_t { prefix, regex_once, regex_all };
    Kind kind = Kind::prefix;
    std::string from{};
    std::string to{};
};

struct ConvertOptions {
    /// At most one of the three; none: one file. files: so many output files of about equal size.
    /// max_file_bytes: as many as needed, each at most this large unless a single tensor is larger.
    /// fqn_to_index_mapping: each tensor into the file that a writer with this mapping would choose. A
    /// tensor that it lacks is an error, plan_unmapped_tensor; a name that the source lacks is left out.
    std::uint32_t files = 0;
    std::uint64_t max_file_bytes = 0;
    FqnToIndexMapping fqn_to_index_mapping{};
    /// F16, BF16, F32 or F64: what tensors of these dtypes become, rounded to nearest, ties to even; a note of the
    /// report counts finite values that became infinite. All other tensors stay, and so do those whose names
    /// (in the source) match one of the globs (fnmatch) of keep_dtype.
    std::optional<Dtype> dtype{};
    std::vector<std::string> keep_dtype{};
    /// Each is applied to what those before it made of a name. One that changes no name is an error, plan_bad_name,
    /// as are two tensors that get one name, a pattern that is none, and a name that becomes empty. The mapping
    /// above has the new names.
    std::vector<Rename> renames{};
    /// Memory for tensor data under way, at most (two windows of half of it each).
    std::uint64_t memory_bytes = std::uint64_t{256} << 20;
    std::function<void(std::uint64_t, std::uint64_t)> progress{};
    /// Looked at between two windows; a stop ends with operation_canceled and changes nothing.
    std::stop_token stop{};
};

/// Any checkpoint -> final files at `destination`, verified while read, with everything a save promises.
/// The source is not changed, unless the destination is its own directory: then the commit replaces it,
/// like any older checkpoint, and checkpoint_conflict says that it was saved to meanwhile. A single file as
/// source cannot be converted into the directory that it stands in.
SAFERING_API Result<SaveReport> convert_checkpoint(const std::string& source,
                                                   const std::string& destination, Reactor& reactor,
                                                   const ConvertOptions& options = {});

} // namespace safering
