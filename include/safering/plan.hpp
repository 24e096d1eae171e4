// Plans, results and metadata of a distributed checkpoint, with the names and meanings of
// torch.distributed.checkpoint (planner.py, metadata.py of PyTorch 2.13). All are plain values: they can
// be copied, compared, and carried between ranks as bytes by any transport.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <boost/container/flat_map.hpp>
#include <boost/container/small_vector.hpp>

#include <safering/byte_range.hpp>
#include <safering/rank_report.hpp>
#include <safering/tensor.hpp>
#include <safering/tensor_name.hpp>

namespace safering {

/// Names one stored chunk: the tensor and, for a shard, the place of its first element.
struct MetadataIndex {
    TensorName fqn{};
    Shape offset{};

    friend bool operator==(const MetadataIndex&, const MetadataIndex&) = default;
    friend auto operator<=>(const MetadataIndex& a, const MetadataIndex& b) {
        if (const auto order = a.fqn <=> b.fqn; order != 0)
            return order;
        return std::lexicographical_compare_three_way(a.offset.begin(), a.offset.end(),
                                                      b.offset.begin(), b.offset.end());
    }
};

/// A box of a global tensor, in elements.
struct ChunkStorageMetadata {
    Shape offsets{};
    Shape sizes{};

    friend bool operator==(const ChunkStorageMetadata&, const ChunkStorageMetadata&) = default;
};

enum class WriteItemType : std::uint8_t {
    tensor, ///< a whole tensor
    shard,  ///< a box of one
};

/// One piece of one tensor that one rank saves. For `tensor`, chunk.offsets are zeros and
/// chunk.sizes equal size.
struct WriteItem {
    TensorName fqn{};
    WriteItemType type = WriteItemType::tensor;
    Dtype dtype = Dtype::u8;
    ChunkStorageMetadata chunk{};
    /// The global shape.
    Shape size{};

    MetadataIndex index() const { return {fqn, chunk.offsets}; }
    friend bool operator==(const WriteItem&, const WriteItem&) = default;
};

/// An output file of a save.
struct PlannedFile {
    std::string name{};
    std::uint64_t file_bytes = 0;
    /// 8 + header length, padded; tensors start here.
    std::uint64_t data_begin = 0;

    friend bool operator==(const PlannedFile&, const PlannedFile&) = default;
};

/// Where an item's bytes go: a box of the tensor that starts at `tensor_begin` of the file.
struct ItemPlacement {
    /// Index into StoragePlan::files.
    std::uint32_t file = 0;
    /// Absolute offset in the file of the first byte of the stored tensor.
    std::uint64_t tensor_begin = 0;

    friend bool operator==(const ItemPlacement&, const ItemPlacement&) = default;
};

enum class FileLayout : std::uint8_t {
    full,    ///< model-00001-of-0000N.safetensors: a stored tensor is the whole tensor
    sharded, ///< shard-00001-model-...: a stored tensor is one rank's chunk
};

/// How ranks of one host bring together what would reach a file as short runs: the rank that owns a run of
/// cells takes the others' bytes and writes whole blocks (two-phase I/O, as ROMIO has it). On load the same
/// backwards: it reads the cells, and the others take from it.
enum class ExchangeWay : std::uint8_t {
    automatic,      ///< where it is cheaper, and the best way that this host permits
    off,            ///< every rank writes its own bytes
    process_memory, ///< process_vm_readv, or an error
    shared_memory,  ///< a segment that both map
};
SAFERING_API std::string_view name(ExchangeWay way);

/// Cells [first_cell, last_cell) of a file, in units of chunk_bytes, that `owner` writes whole.
struct ExchangedCells {
    /// Index into StoragePlan::files.
    std::uint32_t file = 0;
    std::uint32_t owner = 0;
    std::uint64_t first_cell = 0;
    std::uint64_t last_cell = 0;

    friend bool operator==(const ExchangedCells&, const ExchangedCells&) = default;
};

/// An item of another rank with bytes in cells that this rank owns.
struct ForeignItem {
    std::uint32_t rank = 0;
    /// Index into the items of that rank's plan.
    std::uint32_t item = 0;
    Dtype dtype = Dtype::u8;
    /// The item's box in the stored tensor, and that tensor's shape.
    ChunkStorageMetadata chunk{};
    Shape size{};
    ItemPlacement placement{};

    friend bool operator==(const ForeignItem&, const ForeignItem&) = default;
};

/// A rank that takes part in an exchange, and where others of its host reach it.
struct ExchangePeer {
    std::uint32_t rank = 0;
    std::string endpoint{};

    friend bool operator==(const ExchangePeer&, const ExchangePeer&) = default;
};

/// A rank's part in the exchange of a save. Ranks are those of the plans.
struct ExchangePlan {
    ExchangeWay way = ExchangeWay::automatic;
    /// Those with bytes of this rank, by (file, first_cell), disjoint.
    std::vector<ExchangedCells> cells{};
    /// By (rank, item).
    std::vector<ForeignItem> items{};
    /// Whose items those are.
    std::vector<ExchangePeer> sources{};
    /// Who takes from this rank.
    std::vector<ExchangePeer> takers{};
    /// Where `items` of the SavePlan are only some of the rank's: the place of each in its whole plan.
    /// What is not there is written later, without an exchange.
    std::vector<std::uint32_t> positions{};

    friend bool operator==(const ExchangePlan&, const ExchangePlan&) = default;
};

/// What prepare_global_plan adds to a rank's plan, the rank's own part and nothing else.
struct StoragePlan {
    /// 32 lower-case hex digits.
    std::string attempt{};
    /// Directory that the files are written in, absolute.
    std::string directory{};
    FileLayout layout = FileLayout::full;
    /// Extents are cut, and digests taken, at multiples of this many bytes of the file. A power of
    /// two, 4096 or more; 0 is unset.
    std::uint64_t chunk_bytes = 0;
    std::vector<PlannedFile> files{};
    /// Parallel to SavePlan::items.
    std::vector<ItemPlacement> placements{};
    std::optional<ExchangePlan> exchange{};

    friend bool operator==(const StoragePlan&, const StoragePlan&) = default;
};

/// What one rank saves.
struct SavePlan {
    std::uint32_t rank = 0;
    std::vector<WriteItem> items{};
    /// Where ranks of the same host reach this one; empty: it exchanges nothing.
    std::string endpoint{};
    std::optional<StoragePlan> storage{};

    friend bool operator==(const SavePlan&, const SavePlan&) = default;
};

/// Where a chunk lies in the files of a checkpoint.
struct StorageInfo {
    /// Index into Metadata::files or WriteResults::files.
    std::uint32_t file = 0;
    /// Bytes [offset, offset+length) of the file that hold the stored tensor, absolute.
    std::uint64_t offset = 0;
    std::uint64_t length = 0;

    friend bool operator==(const StorageInfo&, const StorageInfo&) = default;
};

/// XXH3-64 digests; in place where there is one, as for all items but the largest.
using Digests = boost::container::small_vector<std::uint64_t, 1>;

/// One item, written and durable.
struct WriteResult {
    MetadataIndex index{};
    /// Bytes of the item.
    std::uint64_t size_in_bytes = 0;
    /// The stored tensor that holds the item.
    StorageInfo storage{};
    /// XXH3-64 of the item's bytes in file order, one for each multiple of chunk_bytes of the file that
    /// the item's span touches; empty where digests are off. 0 for those that another rank wrote.
    Digests digests{};
    /// Cells whose bytes other ranks wrote, and report as ExchangedPiece.
    std::uint32_t handed_over = 0;

    friend bool operator==(const WriteResult&, const WriteResult&) = default;
};

/// What one rank wrote of another's item.
struct ExchangedPiece {
    /// Whose item, and its index in that rank's plan.
    std::uint32_t rank = 0;
    std::uint32_t item = 0;
    /// Which of the cells that the item's span touches, counted from 0.
    std::uint32_t cell = 0;
    /// 0 where digests are off.
    std::uint64_t digest = 0;

    friend bool operator==(const ExchangedPiece&, const ExchangedPiece&) = default;
};

/// How one rank took other ranks' bytes, of a save or of a load.
struct ExchangeReport {
    std::uint64_t process_memory_bytes = 0;
    std::uint64_t shared_memory_bytes = 0;
    /// Why the second way was taken; empty where it was not or was asked for.
    std::string reason{};

    friend bool operator==(const ExchangeReport&, const ExchangeReport&) = default;
};

/// What one rank did: its items in plan order.
struct WriteResults {
    std::uint32_t rank = 0;
    std::string attempt{};
    std::vector<std::string> files{};
    std::vector<WriteResult> items{};
    std::vector<ExchangedPiece> pieces{};
    ExchangeReport exchange{};
    /// What it did for that, and what carried its requests and why: its RankReport.
    WorkReport work{};
    BackendKind backend = BackendKind::threads;
    std::string reason{};

    friend bool operator==(const WriteResults&, const WriteResults&) = default;
};

/// In place where there is one, as there is for most tensors.
using Chunks = boost::container::small_vector<ChunkStorageMetadata, 1>;
using StorageInfos = boost::container::small_vector<StorageInfo, 1>;

struct TensorStorageMetadata {
    Dtype dtype = Dtype::u8;
    /// The global shape.
    Shape size{};
    /// Disjoint boxes that cover the tensor.
    Chunks chunks{};
    /// Parallel to chunks. Empty in the metadata of a save that has not been written.
    StorageInfos storage{};

    friend bool operator==(const TensorStorageMetadata&, const TensorStorageMetadata&) = default;
};

/// By name, in one order on every rank: a sorted vector with the interface of std::map, as metadata is made
/// once and read often. Insert in order of the names, with end() for a hint: elsewhere it moves what follows.
using TensorMap = boost::container::flat_map<TensorName, TensorStorageMetadata, std::less<>>;

/// What a checkpoint holds.
struct Metadata {
    TensorMap tensors{};
    /// Absolute paths; empty in the metadata of a save that has not been written.
    std::vector<std::string> files{};

    friend bool operator==(const Metadata&, const Metadata&) = default;
};

/// A box of a stored chunk and where it goes in a destination.
struct ReadItem {
    TensorName fqn{};
    /// The stored chunk: index into TensorStorageMetadata::chunks.
    std::uint32_t chunk = 0;
    /// Offsets in the stored chunk, in elements.
    Shape storage_offsets{};
    /// Which of the rank's destinations of this fqn: the place of its first element in the global tensor.
    Shape dest_index{};
    /// Offsets in that destination, in elements.
    Shape dest_offsets{};
    Shape lengths{};

    friend bool operator==(const ReadItem&, const ReadItem&) = default;
};

/// Bytes of a file of a checkpoint, absolute.
struct FileRange {
    /// Index into Metadata::files.
    std::uint32_t file = 0;
    ByteRange range{};

    friend bool operator==(const FileRange&, const FileRange&) = default;
};

/// What a rank would read by itself, for the coordinator to see what several of a host would.
struct LoadOffer {
    /// Where ranks of the same host reach this one.
    std::string endpoint{};
    /// The same on all ranks that have opened the same files.
    std::string checkpoint{};
    /// Files are read, and their bytes handed on, in cells of so many bytes. A power of two, 4096 or more.
    std::uint64_t chunk_bytes = 0;
    /// Rising, disjoint, none empty.
    std::vector<FileRange> ranges{};

    friend bool operator==(const LoadOffer&, const LoadOffer&) = default;
};

/// Cells [first_cell, last_cell) of a file that `owner` reads, and others take from it.
struct SharedCells {
    /// Index into Metadata::files.
    std::uint32_t file = 0;
    std::uint32_t owner = 0;
    std::uint64_t first_cell = 0;
    std::uint64_t last_cell = 0;
    /// Rising; told to the owner alone.
    std::vector<std::uint32_t> takers{};

    friend bool operator==(const SharedCells&, const SharedCells&) = default;
};

/// A rank's part in the exchange of a load. Ranks are places in what prepare_global_plan was given.
struct LoadExchange {
    /// Names this exchange among all others, and then what it is of: 32 hex digits, '.', LoadOffer::checkpoint.
    std::string id{};
    std::uint32_t rank = 0;
    ExchangeWay way = ExchangeWay::automatic;
    std::uint64_t chunk_bytes = 0;
    /// Those that this rank owns or takes, by (file, first_cell), disjoint.
    std::vector<SharedCells> cells{};
    /// What it reads of those that it owns. Rising, disjoint.
    std::vector<FileRange> reads{};
    /// This rank, from whom it takes, and who takes from it; rising. Whoever loads must be reached as this rank is.
    std::vector<ExchangePeer> peers{};

    friend bool operator==(const LoadExchange&, const LoadExchange&) = default;
};

struct LoadPlan {
    std::vector<ReadItem> items{};
    /// From prepare_local_plan to prepare_global_plan; without one a rank exchanges nothing.
    std::optional<LoadOffer> offer{};
    /// From prepare_global_plan on, where there is something to exchange.
    std::optional<LoadExchange> exchange{};

    friend bool operator==(const LoadPlan&, const LoadPlan&) = default;
};

/// Self-describing bytes (a magic, a version, little-endian integers), the same on every host.
SAFERING_API std::vector<std::byte> to_bytes(const SavePlan& plan);
SAFERING_API std::vector<std::byte> to_bytes(const StoragePlan& storage);
SAFERING_API std::vector<std::byte> to_bytes(const WriteResults& results);
SAFERING_API std::vector<std::byte> to_bytes(const LoadPlan& plan);
SAFERING_API std::vector<std::byte> to_bytes(const Metadata& metadata);
/// Errors: plan_bad_bytes, with the offset, also where lists that should be parallel are not, the
/// index of a file has no file, a shape has more than 64 dimensions or chunk_bytes is no power of
/// two of at least 4096. Never reads beyond the bytes, and needs memory in proportion to them: at
/// worst about 100 bytes for each of theirs (an item of three bytes becomes a WriteItem of 128, in
/// a vector that doubles).
SAFERING_API Result<SavePlan> save_plan_from_bytes(std::span<const std::byte> bytes);
/// `items`: how many the plan has that it belongs to, for a carrier that sends items its own way.
SAFERING_API Result<StoragePlan> storage_plan_from_bytes(std::span<const std::byte> bytes,
                                                         std::size_t items);
SAFERING_API Result<WriteResults> write_results_from_bytes(std::span<const std::byte> bytes);
SAFERING_API Result<LoadPlan> load_plan_from_bytes(std::span<const std::byte> bytes);
SAFERING_API Result<Metadata> metadata_from_bytes(std::span<const std::byte> bytes);

} // namespace safering
