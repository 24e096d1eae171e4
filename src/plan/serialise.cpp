// The values that travel between ranks, as bytes. Each has a pair of functions, `put` and `take`,
// whose lines match one for one. What `take` accepts is sound in itself: parallel lists have one
// length, a file's index has its file.
#include <safering/plan.hpp>

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "plan/plan_codec.hpp"
#include "utf8.hpp"

namespace safering {

namespace {

using namespace plan;

Dtype take_dtype(ByteReader& in, std::uint8_t value) {
    if (value < dtype_count)
        return static_cast<Dtype>(value);
    in.refuse("unknown dtype");
    return {};
}

std::uint32_t take_file(ByteReader& in, std::size_t files) {
    const std::uint32_t file = in.number32();
    if (in.ok() && file >= files)
        in.refuse("the index of a file has no file");
    return file;
}

// An item's flags: the dtype, one bit for a shard and one for a chunk that is the whole tensor.
constexpr unsigned shard_bit = 1 << 5, whole_bit = 1 << 6;
static_assert(dtype_count <= shard_bit);

void put(ByteWriter& out, const WriteItem& item) {
    const bool whole =
        item.chunk.sizes == item.size && item.chunk.offsets == Shape(item.size.size(), 0);
    out.name(item.fqn);
    out.byte(static_cast<std::uint8_t>(static_cast<unsigned>(item.dtype) |
                                       (item.type == WriteItemType::shard ? shard_bit : 0) |
                                       (whole ? whole_bit : 0)));
    out.shape(item.size);
    if (whole)
        return;
    out.shape(item.chunk.offsets);
    out.shape(item.chunk.sizes);
}

WriteItem take_write_item(ByteReader& in) {
    WriteItem item;
    item.fqn = in.name();
    const unsigned flags = in.byte();
    item.type = (flags & shard_bit) != 0 ? WriteItemType::shard : WriteItemType::tensor;
    item.dtype = take_dtype(in, static_cast<std::uint8_t>(flags & ~(shard_bit | whole_bit)));
    item.size = in.shape();
    if ((flags & whole_bit) != 0) {
        item.chunk = {Shape(item.size.size(), 0), item.size};
    } else {
        item.chunk.offsets = in.shape();
        item.chunk.sizes = in.shape();
    }
    return item;
}

void put(ByteWriter& out, const ChunkStorageMetadata& chunk) {
    out.shape(chunk.offsets);
    out.shape(chunk.sizes);
}

ChunkStorageMetadata take_chunk(ByteReader& in) {
    ChunkStorageMetadata chunk;
    chunk.offsets = in.shape();
    chunk.sizes = in.shape();
    return chunk;
}

void put(ByteWriter& out, const ItemPlacement& placement) {
    out.number(placement.file);
    out.number(placement.tensor_begin);
}

ItemPlacement take_placement(ByteReader& in, std::size_t files) {
    ItemPlacement placement;
    placement.file = take_file(in, files);
    placement.tensor_begin = in.number();
    return placement;
}

void put(ByteWriter& out, const ExchangePlan& exchange) {
    out.byte(static_cast<std::uint8_t>(exchange.way));
    out.number(exchange.cells.size());
    for (const ExchangedCells& cells : exchange.cells) {
        out.number(cells.file);
        out.number(cells.owner);
        out.number(cells.first_cell);
        out.number(cells.last_cell);
    }
    out.number(exchange.items.size());
    for (const ForeignItem& item : exchange.items) {
        out.number(item.rank);
        out.number(item.item);
        out.byte(static_cast<std::uint8_t>(item.dtype));
        put(out, item.chunk);
        out.shape(item.size);
        put(out, item.placement);
    }
    plan::put(out, exchange.sources);
    plan::put(out, exchange.takers);
    out.number(exchange.positions.size());
    for (const std::uint32_t position : exchange.positions)
        out.number(position);
}

ExchangePlan take_exchange_plan(ByteReader& in, std::size_t files) {
    ExchangePlan exchange;
    exchange.way = take_way(in);
    exchange.cells = take_list(in, 4, [&] {
        ExchangedCells cells;
        cells.file = take_file(in, files);
        cells.owner = in.number32();
        cells.first_cell = in.number();
        cells.last_cell = in.number();
        return cells;
    });
    exchange.items = take_list(in, 8, [&] {
        ForeignItem item;
        item.rank = in.number32();
        item.item = in.number32();
        item.dtype = take_dtype(in, in.byte());
        item.chunk = take_chunk(in);
        item.size = in.shape();
        item.placement = take_placement(in, files);
        return item;
    });
    exchange.sources = take_peers(in);
    exchange.takers = take_peers(in);
    exchange.positions = take_list(in, 1, [&] { return in.number32(); });
    return exchange;
}

void put(ByteWriter& out, const StoragePlan& storage) {
    out.text(storage.attempt);
    out.text(storage.directory);
    out.byte(static_cast<std::uint8_t>(storage.layout));
    out.number(storage.chunk_bytes);
    out.number(storage.files.size());
    for (const PlannedFile& file : storage.files) {
        out.text(file.name);
        out.number(file.file_bytes);
        out.number(file.data_begin);
    }
    out.number(storage.placements.size());
    for (const ItemPlacement& placement : storage.placements)
        put(out, placement);
    out.byte(storage.exchange ? 1 : 0);
    if (storage.exchange)
        put(out, *storage.exchange);
}

StoragePlan take_storage_plan(ByteReader& in, std::size_t items) {
    StoragePlan storage;
    storage.attempt = in.text();
    storage.directory = in.text();
    const std::uint8_t layout = in.byte();
    if (layout > static_cast<std::uint8_t>(FileLayout::sharded))
        in.refuse("unknown layout");
    storage.layout = static_cast<FileLayout>(layout);
    storage.chunk_bytes = take_chunk_bytes(in);
    storage.files = take_list(in, 3, [&] {
        PlannedFile file;
        file.name = in.text();
        file.file_bytes = in.number();
        file.data_begin = in.number();
        return file;
    });
    storage.placements = take_list(in, 2, [&] { return take_placement(in, storage.files.size()); });
    if (in.ok() && storage.placements.size() != items)
        in.refuse("there are not as many places as items");
    if (take_flag(in))
        storage.exchange = take_exchange_plan(in, storage.files.size());
    return storage;
}

void put(ByteWriter& out, const StorageInfo& storage) {
    out.number(storage.file);
    out.number(storage.offset);
    out.number(storage.length);
}

StorageInfo take_storage_info(ByteReader& in, std::size_t files) {
    StorageInfo storage;
    storage.file = take_file(in, files);
    storage.offset = in.number();
    storage.length = in.number();
    return storage;
}

void put(ByteWriter& out, const std::vector<std::string>& texts) {
    out.number(texts.size());
    for (const std::string& text : texts)
        out.text(text);
}

std::vector<std::string> take_texts(ByteReader& in) {
    return take_list(in, 1, [&] { return in.text(); });
}

void put(ByteWriter& out, const WriteResult& result) {
    out.name(result.index.fqn);
    out.shape(result.index.offset);
    out.number(result.size_in_bytes);
    put(out, result.storage);
    out.number(result.digests.size());
    for (const std::uint64_t digest : result.digests)
        out.fixed(digest);
    out.number(result.handed_over);
}

WriteResult take_write_result(ByteReader& in, std::size_t files) {
    WriteResult result;
    result.index.fqn = in.name();
    result.index.offset = in.shape();
    result.size_in_bytes = in.number();
    result.storage = take_storage_info(in, files);
    result.digests = take_list<Digests>(in, 8, [&] { return in.fixed(); });
    result.handed_over = in.number32();
    return result;
}

void put(ByteWriter& out, const ExchangedPiece& piece) {
    out.number(piece.rank);
    out.number(piece.item);
    out.number(piece.cell);
    out.fixed(piece.digest);
}

// Nobody times anything for 35 years; below it microseconds come back as they were.
constexpr std::uint64_t most_microseconds = std::uint64_t{1} << 50;

void put(ByteWriter& out, const WorkReport& work) {
    WorkReport::each_field([&]<typename Field>(const char*, Field WorkReport::* field) {
        if constexpr (std::is_floating_point_v<Field>)
            out.number(static_cast<std::uint64_t>(std::llround(
                std::clamp(work.*field * 1e6, 0.0, static_cast<double>(most_microseconds)))));
        else
            out.number(work.*field);
    });
}

WorkReport take_work(ByteReader& in) {
    WorkReport work;
    WorkReport::each_field([&]<typename Field>(const char*, Field WorkReport::* field) {
        if constexpr (std::is_floating_point_v<Field>)
            work.*field = static_cast<double>(in.number_up_to(most_microseconds)) / 1e6;
        else
            work.*field = in.number();
    });
    return work;
}

// A reason, which is shown to people.
std::string take_words(ByteReader& in) {
    std::string words = in.text();
    if (find_invalid_utf8(words) != std::string::npos)
        in.refuse("a reason is not UTF-8");
    return words;
}

BackendKind take_backend(ByteReader& in) {
    const std::uint8_t backend = in.byte();
    if (backend > static_cast<std::uint8_t>(BackendKind::simulated))
        in.refuse("unknown backend");
    return static_cast<BackendKind>(backend);
}

ExchangedPiece take_piece(ByteReader& in) {
    ExchangedPiece piece;
    piece.rank = in.number32();
    piece.item = in.number32();
    piece.cell = in.number32();
    piece.digest = in.fixed();
    return piece;
}

void put(ByteWriter& out, const TensorStorageMetadata& tensor) {
    out.byte(static_cast<std::uint8_t>(tensor.dtype));
    out.shape(tensor.size);
    out.number(tensor.chunks.size());
    for (const ChunkStorageMetadata& chunk : tensor.chunks)
        put(out, chunk);
    out.number(tensor.storage.size());
    for (const StorageInfo& storage : tensor.storage)
        put(out, storage);
}

TensorStorageMetadata take_tensor(ByteReader& in, std::size_t files) {
    TensorStorageMetadata tensor;
    tensor.dtype = take_dtype(in, in.byte());
    tensor.size = in.shape();
    tensor.chunks = take_list<Chunks>(in, 2, [&] { return take_chunk(in); });
    tensor.storage = take_list<StorageInfos>(in, 3, [&] { return take_storage_info(in, files); });
    if (in.ok() && !tensor.storage.empty() && tensor.storage.size() != tensor.chunks.size())
        in.refuse("there are not as many places as chunks");
    return tensor;
}

} // namespace

std::vector<std::byte> to_bytes(const SavePlan& plan) {
    ByteWriter out(ByteKind::save_plan);
    out.number(plan.rank);
    out.number(plan.items.size());
    for (const WriteItem& item : plan.items)
        put(out, item);
    out.text(plan.endpoint);
    out.byte(plan.storage ? 1 : 0);
    if (plan.storage)
        put(out, *plan.storage);
    return std::move(out).finish();
}

Result<SavePlan> save_plan_from_bytes(std::span<const std::byte> bytes) {
    ByteReader in(bytes, ByteKind::save_plan);
    SavePlan plan;
    plan.rank = in.number32();
    plan.items = take_list(in, 3, [&] { return take_write_item(in); });
    plan.endpoint = in.text();
    if (take_flag(in))
        plan.storage = take_storage_plan(in, plan.items.size());
    return finish(in, std::move(plan));
}

std::vector<std::byte> to_bytes(const StoragePlan& storage) {
    ByteWriter out(ByteKind::storage_plan);
    put(out, storage);
    return std::move(out).finish();
}

Result<StoragePlan> storage_plan_from_bytes(std::span<const std::byte> bytes, std::size_t items) {
    ByteReader in(bytes, ByteKind::storage_plan);
    StoragePlan storage = take_storage_plan(in, items);
    return finish(in, std::move(storage));
}

std::vector<std::byte> to_bytes(const WriteResults& results) {
    ByteWriter out(ByteKind::write_results);
    out.number(results.rank);
    out.text(results.attempt);
    put(out, results.files);
    out.number(results.items.size());
    for (const WriteResult& item : results.items)
        put(out, item);
    out.number(results.pieces.size());
    for (const ExchangedPiece& piece : results.pieces)
        put(out, piece);
    out.number(results.exchange.process_memory_bytes);
    out.number(results.exchange.shared_memory_bytes);
    out.text(results.exchange.reason);
    put(out, results.work);
    out.byte(static_cast<std::uint8_t>(results.backend));
    out.text(results.reason);
    return std::move(out).finish();
}

Result<WriteResults> write_results_from_bytes(std::span<const std::byte> bytes) {
    ByteReader in(bytes, ByteKind::write_results);
    WriteResults results;
    results.rank = in.number32();
    results.attempt = in.text();
    results.files = take_texts(in);
    results.items = take_list(in, 8, [&] { return take_write_result(in, results.files.size()); });
    results.pieces = take_list(in, 11, [&] { return take_piece(in); });
    results.exchange.process_memory_bytes = in.number();
    results.exchange.shared_memory_bytes = in.number();
    results.exchange.reason = take_words(in);
    results.work = take_work(in);
    results.backend = take_backend(in);
    results.reason = take_words(in);
    return finish(in, std::move(results));
}

std::vector<std::byte> to_bytes(const Metadata& metadata) {
    ByteWriter out(ByteKind::metadata);
    put(out, metadata.files);
    out.number(metadata.tensors.size());
    for (const auto& [fqn, tensor] : metadata.tensors) {
        out.text(fqn);
        put(out, tensor);
    }
    return std::move(out).finish();
}

Result<Metadata> metadata_from_bytes(std::span<const std::byte> bytes) {
    ByteReader in(bytes, ByteKind::metadata);
    Metadata metadata;
    metadata.files = take_texts(in);
    TensorNames names;
    for (std::size_t left = in.count(5); left > 0 && in.ok(); --left) {
        TensorName fqn = names.add(in.text());
        if (!metadata.tensors.empty() && fqn <= metadata.tensors.rbegin()->first)
            in.refuse("names are not in order");
        metadata.tensors.emplace_hint(metadata.tensors.end(), std::move(fqn),
                                      take_tensor(in, metadata.files.size()));
    }
    return finish(in, std::move(metadata));
}

} // namespace safering
