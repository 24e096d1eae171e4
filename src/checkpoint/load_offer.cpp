#include "checkpoint/load_offer.hpp"

#include <algorithm>
#include <bit>

#include <fmt/format.h>

#include "checkpoint/extents.hpp"
#include "large_memory.hpp"
#include "plan/cell_runs.hpp"
#include "plan/tensor_finder.hpp"

namespace safering::checkpoint {

namespace {

struct PlacedBox {
    plan::FileBox box;
    std::uint64_t begin; // of the stored chunk, in the file
};

// Of one file, by the gaps that a read goes across.
void add_ranges(std::vector<FileRange>& ranges, std::uint32_t file,
                std::span<const ByteRange> runs) {
    for (const ByteRange run : runs)
        if (!ranges.empty() && ranges.back().file == file &&
            run.begin <= ranges.back().range.end + read_gap_bytes)
            ranges.back().range.end = std::max(ranges.back().range.end, run.end);
        else if (!run.empty())
            ranges.push_back({file, run});
}

} // namespace

std::string identity_of(const StoredCheckpoint& checkpoint, Verification verification) {
    if (!checkpoint.digests)
        verification = Verification::off;
    std::string text = fmt::format("{}/{}", checkpoint.attempt, static_cast<int>(verification));
    for (const StoredFile& file : checkpoint.files) {
        const FileStatus& status = file.file.status();
        text += fmt::format("/{}:{}:{}:{}:{}", status.device, status.inode, status.size,
                            file.name.size(), file.name);
    }
    return fmt::format("{:016x}", plan::digest_of(std::as_bytes(std::span(text))));
}

Result<std::uint64_t> read_chunk_bytes(const StoredCheckpoint& checkpoint,
                                       Verification verification, std::uint64_t buffer_bytes) {
    if (!checkpoint.digests || verification == Verification::off)
        return std::bit_floor(buffer_bytes);
    if (checkpoint.chunk_bytes > buffer_bytes)
        return fail(
            Errc::checkpoint_over_budget, "read data",
            fmt::format(
                "digests of this checkpoint cover {} bytes each, the buffers have {}: give the "
                "reactor buffer_bytes of at least that, or turn verification off",
                checkpoint.chunk_bytes, buffer_bytes));
    return checkpoint.chunk_bytes;
}

std::vector<ByteRange> read_runs(const StoredFile& file, std::vector<ByteRange> runs,
                                 ByteRange cell, Verification verification,
                                 std::uint64_t chunk_bytes) {
    if (verification == Verification::all)
        for (const DigestPiece& piece : pieces_in(file, cell, chunk_bytes))
            runs.push_back(piece.range);
    // Destinations may ask for the same bytes twice, and pieces overlap runs.
    std::ranges::sort(runs);
    std::vector<ByteRange> joined;
    for (const ByteRange run : runs)
        if (!joined.empty() && run.begin <= joined.back().end)
            joined.back().end = std::max(joined.back().end, run.end);
        else
            joined.push_back(run);
    return joined;
}

Result<LoadOffer> make_load_offer(const StoredCheckpoint& checkpoint, const LoadPlan& plan,
                                  Verification verification, std::uint64_t chunk_bytes,
                                  std::string endpoint) {
    std::vector<PlacedBox> boxes;
    std::vector<std::vector<plan::FileSpan>> spans(checkpoint.files.size());
    reserve_large(boxes, plan.items.size());
    plan::TensorFinder tensors(checkpoint.metadata.tensors);
    for (const ReadItem& item : plan.items) {
        const TensorStorageMetadata& tensor = *tensors.find(item.fqn);
        auto box = plan::FileBox::make(tensor.dtype, tensor.chunks[item.chunk].sizes,
                                       item.storage_offsets, item.lengths);
        if (!box) {
            box.error().tensor = item.fqn;
            return std::unexpected(std::move(box.error()));
        }
        const StorageInfo& stored = tensor.storage[item.chunk];
        spans[stored.file].push_back({box->hull().shifted(stored.offset),
                                      static_cast<std::uint32_t>(boxes.size()),
                                      !box->contiguous()});
        boxes.push_back({std::move(*box), stored.offset});
    }
    LoadOffer offer{.endpoint = std::move(endpoint),
                    .checkpoint = identity_of(checkpoint, verification),
                    .chunk_bytes = chunk_bytes,
                    .ranges = {}};
    for (std::uint32_t f = 0; f < spans.size(); ++f) {
        const plan::RequestPlan requests =
            plan::RequestPlanner(chunk_bytes).plan_reads(std::move(spans[f]));
        for (const plan::CellRequest& request : requests.requests)
            add_ranges(
                offer.ranges, f,
                read_runs(checkpoint.files[f],
                          plan::cell_runs(
                              requests, request, read_slack_bytes,
                              [&](std::uint32_t i) -> const plan::FileBox& { return boxes[i].box; },
                              [&](std::uint32_t i) { return boxes[i].begin; }),
                          request.range, verification, chunk_bytes));
    }
    return offer;
}

} // namespace safering::checkpoint
