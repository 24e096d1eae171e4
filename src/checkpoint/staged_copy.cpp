#include "checkpoint/staged_copy.hpp"

#include <algorithm>
#include <atomic>
#include <thread>

#include "checkpoint/check_source.hpp"
#include "checkpoint/planned_box.hpp"
#include "io/on_threads.hpp"
#include "io/staging_pool.hpp"
#include "plan/staging_layout.hpp"

namespace safering::checkpoint {

namespace {

constexpr std::uint64_t piece_bytes = std::uint64_t{4} << 20;
constexpr std::uint64_t staging_block_bytes = 4096;

struct Part {
    const StagingPiece* piece;
    ByteRange window;
};

Result<plan::StagingLayout> lay_out(const SavePlan& plan) {
    std::vector<plan::StagedSpan> spans;
    spans.reserve(plan.items.size());
    for (std::size_t i = 0; i < plan.items.size(); ++i) {
        auto box = file_box(plan, plan.items[i]);
        if (!box)
            return std::unexpected(std::move(box.error()));
        const ItemPlacement& placement = plan.storage->placements[i];
        spans.push_back(
            {placement.file, box->hull().shifted(placement.tensor_begin), box->bytes()});
    }
    return plan::lay_out_staging(spans, staging_block_bytes);
}

} // namespace

Result<plan::StagingLayout> expect_staging_layout(const SavePlan& plan, FileLayout layout,
                                                  const plan::FqnToIndexMapping& mapping) {
    std::vector<SavePlan> plans{plan};
    auto laid_out = plan::plan_layout(plans, {.layout = layout, .fqn_to_index_mapping = mapping});
    if (!laid_out)
        return std::unexpected(std::move(laid_out.error()));
    plans[0].storage = StoragePlan{.layout = layout, .placements = laid_out->placements[0]};
    return lay_out(plans[0]);
}

Result<StagingPiece> make_staging_piece(std::byte* to, const TensorView& view) {
    auto copy = plan::BoxCopy::make(view.dtype, view.shape, Shape(view.shape.size(), 0), view.shape,
                                    view.strides);
    if (!copy)
        return std::unexpected(std::move(copy.error()));
    return StagingPiece{to, view.data, std::move(*copy)};
}

void copy_pieces(std::span<const StagingPiece> pieces) {
    std::vector<Part> parts;
    for (const StagingPiece& piece : pieces) {
        const std::uint64_t bytes = piece.copy.file_box().bytes();
        for (std::uint64_t at = 0; at < bytes; at += piece_bytes)
            parts.push_back({&piece, {at, std::min(at + piece_bytes, bytes)}});
    }
    // A thread is handed about so much at a time: a part of a large tensor, or many small tensors.
    std::vector<std::size_t> ends;
    std::uint64_t gathered = 0;
    for (std::size_t i = 0; i < parts.size(); ++i)
        if ((gathered += parts[i].window.size()) >= piece_bytes || i + 1 == parts.size()) {
            ends.push_back(i + 1);
            gathered = 0;
        }
    std::atomic<std::size_t> next = 0;
    const auto work = [&] {
        for (std::size_t group = next++; group < ends.size(); group = next++)
            for (std::size_t i = group == 0 ? 0 : ends[group - 1]; i < ends[group]; ++i) {
                const auto& [piece, window] = parts[i];
                piece->copy.gather(piece->from, piece->to + window.begin, window);
            }
    };
    // As many as fill a memory controller.
    const std::size_t threads =
        std::min<std::size_t>({std::max(1u, std::thread::hardware_concurrency()), 4, ends.size()});
    on_threads(threads, work);
}

Result<void> copy_items(std::uint32_t rank, std::span<const WriteItem> items,
                        std::span<std::byte* const> places, SavePlanner& planner) {
    std::vector<StagingPiece> pieces;
    std::vector<std::shared_ptr<const void>> owners;
    pieces.reserve(items.size());
    for (std::size_t i = 0; i < items.size(); ++i) {
        auto view = planner.resolve_data(items[i]);
        if (!view)
            return std::unexpected(std::move(view.error()));
        if (auto checked = check_source(rank, items[i], *view); !checked)
            return checked;
        auto piece = make_staging_piece(places[i], *view);
        if (!piece) {
            piece.error().tensor = items[i].fqn;
            return std::unexpected(std::move(piece.error()));
        }
        pieces.push_back(std::move(*piece));
        if (view->owner)
            owners.push_back(std::move(view->owner));
    }
    copy_pieces(pieces);
    return {};
}

Result<std::shared_ptr<StagedCopy>> StagedCopy::make(const SavePlan& plan) {
    const auto layout = lay_out(plan);
    if (!layout)
        return std::unexpected(layout.error());
    auto memory = io::StagingPool::of_process().take(layout->bytes);
    if (!memory) {
        memory.error().operation = "stage data";
        return std::unexpected(std::move(memory.error()));
    }
    auto staged = std::make_shared<StagedCopy>();
    staged->memory_ = std::move(*memory);
    for (const std::uint64_t offset : layout->offsets)
        staged->places_.push_back(staged->memory_.get() + offset);
    return staged;
}

Result<TensorView> StagedCopy::resolve_data(const WriteItem& item) {
    const std::size_t place = next_;
    next_ = (next_ + 1) % places_.size();
    return TensorView{.data = places_[place],
                      .dtype = item.dtype,
                      .shape = item.chunk.sizes,
                      .strides = {},
                      .owner = memory_};
}

} // namespace safering::checkpoint
