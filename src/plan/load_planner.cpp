#include <safering/planner.hpp>

#include <algorithm>
#include <memory>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "large_memory.hpp"
#include "plan/chunk_index.hpp"
#include "plan/local_parts.hpp"
#include "plan/sorted.hpp"
#include "plan/tensor_finder.hpp"
#include "plan/text.hpp"
#include "plan/tiling.hpp"

namespace safering {

namespace {

using plan::in_words;

std::unexpected<Error> wrong(Errc code, const char* operation, std::string_view fqn,
                             std::string detail) {
    auto error = fail(code, operation, std::move(detail));
    error.error().tensor = fqn;
    return error;
}

auto key(const LocalDestination& destination) {
    return std::tie(destination.fqn, destination.offsets);
}

bool is_empty(const Shape& sizes) {
    return std::ranges::find(sizes, 0u) != sizes.end();
}

bool inside(const ChunkStorageMetadata& box, const Shape& size) {
    for (std::size_t d = 0; d < size.size(); ++d)
        if (box.sizes[d] > size[d] || box.offsets[d] > size[d] - box.sizes[d])
            return false;
    return true;
}

// Stored chunks that can be relied on below: of the tensor's rank, inside it, countable.
Result<void> check_stored(std::string_view fqn, const TensorStorageMetadata& stored) {
    if (!plan::element_count(stored.size))
        return wrong(
            Errc::plan_overflow, "plan load", fqn,
            fmt::format("stored shape {} has 2^63 elements or more", in_words(stored.size)));
    for (const ChunkStorageMetadata& chunk : stored.chunks) {
        if (chunk.offsets.size() != stored.size.size() || chunk.sizes.size() != stored.size.size())
            return wrong(Errc::plan_shape_mismatch, "plan load", fqn,
                         fmt::format("stored chunk {} has another rank than the tensor's shape {}",
                                     in_words(chunk), in_words(stored.size)));
        if (!inside(chunk, stored.size))
            return wrong(Errc::plan_out_of_bounds, "plan load", fqn,
                         fmt::format("stored chunk {} reaches outside the tensor's shape {}",
                                     in_words(chunk), in_words(stored.size)));
    }
    return {};
}

// Counting elements is not enough: a chunk that is there twice makes up for one that is missing.
Result<void> check_tiled(std::string_view fqn, const TensorStorageMetadata& stored) {
    const auto fault = plan::find_tiling_fault(stored.size, stored.chunks);
    if (!fault)
        return {};
    // No more elements than the tensor has, some of them twice: others are in no chunk.
    std::uint64_t spare = plan::element_count(stored.size).value_or(0);
    bool too_many = false;
    for (const ChunkStorageMetadata& chunk : stored.chunks) {
        const std::uint64_t elements = plan::element_count(chunk.sizes).value_or(0);
        too_many |= elements > spare;
        spare -= std::min(elements, spare);
    }
    const bool overlap = fault->code == Errc::plan_overlap && too_many;
    return wrong(overlap ? Errc::plan_overlap : Errc::checkpoint_incomplete, "plan load", fqn,
                 "of the stored chunks, " +
                     plan::in_words(*fault, stored.size, [&](std::size_t chunk) {
                         return in_words(stored.chunks[chunk]);
                     }));
}

Result<void> check_destination(const LocalDestination& destination,
                               const TensorStorageMetadata& stored) {
    if (destination.data.dtype != stored.dtype || destination.size != stored.size)
        return wrong(Errc::plan_shape_mismatch, "plan load", destination.fqn,
                     fmt::format("the checkpoint has {} {}, the destination is a part of {} {}",
                                 name(stored.dtype), in_words(stored.size),
                                 name(destination.data.dtype), in_words(destination.size)));
    const ChunkStorageMetadata box{destination.offsets, destination.data.shape};
    if (box.offsets.size() != stored.size.size() || box.sizes.size() != stored.size.size())
        return wrong(Errc::plan_shape_mismatch, "plan load", destination.fqn,
                     fmt::format("destination {} has another rank than the tensor's shape {}",
                                 in_words(box), in_words(stored.size)));
    if (!inside(box, stored.size))
        return wrong(Errc::plan_out_of_bounds, "plan load", destination.fqn,
                     fmt::format("destination {} reaches outside the tensor's shape {}",
                                 in_words(box), in_words(stored.size)));
    return {};
}

Shape difference(const Shape& a, const Shape& b) {
    Shape out(a.size(), 0);
    for (std::size_t d = 0; d < a.size(); ++d)
        out[d] = a[d] - b[d];
    return out;
}

// Items for all of the destination, as the stored chunks hold each element once. Without an index the tensor has
// one chunk.
void add_items(const LocalDestination& destination, const TensorStorageMetadata& stored,
               const plan::ChunkIndex* index, std::vector<ReadItem>& items) {
    const ChunkStorageMetadata box{destination.offsets, destination.data.shape};
    std::uint64_t found = 0;
    const auto add = [&](std::uint32_t chunk, const ChunkStorageMetadata& common) {
        found += plan::element_count(common.sizes).value_or(0);
        items.push_back({destination.fqn, chunk,
                         difference(common.offsets, stored.chunks[chunk].offsets), box.offsets,
                         difference(common.offsets, box.offsets), common.sizes});
    };
    ChunkStorageMetadata common;
    if (index != nullptr)
        index->for_each_in(box, add);
    else if (plan::intersect(stored.chunks[0], box, common))
        add(0, common);
    SAFERING_ASSERT(found == plan::element_count(box.sizes).value_or(0));
}

} // namespace

LoadPlanner::~LoadPlanner() = default;

Result<void> LoadPlanner::commit_tensor(const ReadItem&) {
    return {};
}

DefaultLoadPlanner::DefaultLoadPlanner(std::vector<LocalDestination> tensors)
    : tensors_(std::move(tensors)) {
    plan::complete(tensors_);
    // Those without elements, which no item names, behind one that begins at the same place.
    order_ = plan::order_by_name(
        tensors_, [](const LocalDestination& tensor) -> std::string_view { return tensor.fqn; },
        [](const LocalDestination& a, const LocalDestination& b) {
            if (const auto order = key(a) <=> key(b); order != 0)
                return order < 0;
            return is_empty(a.data.shape) < is_empty(b.data.shape);
        });
}

Result<LoadPlan> DefaultLoadPlanner::create_local_plan(const Metadata& metadata) const {
    LoadPlan plan;
    // Of the tensor before, as destinations are sorted by name.
    std::unique_ptr<plan::ChunkIndex> index;
    plan::TensorFinder tensors(metadata.tensors);
    reserve_large(plan.items, tensors_.size());
    const LocalDestination* before = nullptr;
    for (const std::uint32_t place : order_) {
        const LocalDestination& destination = tensors_[place];
        const LocalDestination* previous = std::exchange(before, &destination);
        const TensorStorageMetadata* stored = tensors.find(destination.fqn);
        if (stored == nullptr)
            return wrong(Errc::checkpoint_tensor_missing, "plan load", destination.fqn,
                         fmt::format("it is not among the checkpoint's {} tensors",
                                     metadata.tensors.size()));
        const bool is_new = previous == nullptr || previous->fqn != destination.fqn;
        if (is_new)
            if (auto good = check_stored(destination.fqn, *stored); !good)
                return std::unexpected(std::move(good.error()));
        if (auto good = check_destination(destination, *stored); !good)
            return std::unexpected(std::move(good.error()));
        if (is_new) {
            if (auto good = check_tiled(destination.fqn, *stored); !good)
                return std::unexpected(std::move(good.error()));
            index = stored->chunks.size() == 1
                        ? nullptr
                        : std::make_unique<plan::ChunkIndex>(stored->size, stored->chunks);
        }
        if (is_empty(destination.data.shape))
            continue;
        if (!is_new && key(*previous) == key(destination))
            return wrong(Errc::plan_duplicate_item, "plan load", destination.fqn,
                         fmt::format("two destinations begin at {}; load one and copy it",
                                     in_words(destination.offsets)));
        add_items(destination, *stored, index.get(), plan.items);
    }
    return plan;
}

Result<MutableTensorView> DefaultLoadPlanner::resolve_tensor(const ReadItem& item) {
    const auto wanted = std::tie(item.fqn, item.dest_index);
    const auto key_at = [&](std::uint32_t place) { return key(tensors_[place]); };
    const auto is_at = [&](std::size_t at) {
        return at < order_.size() && key_at(order_[at]) == wanted;
    };
    // Items come in plan order, which is ours, one or more a destination.
    if (!is_at(next_) && !is_at(++next_))
        next_ = static_cast<std::size_t>(
            std::ranges::lower_bound(order_, wanted, std::less(), key_at) - order_.begin());
    const ChunkStorageMetadata box{item.dest_offsets, item.lengths};
    const bool known = is_at(next_);
    const LocalDestination* found = known ? &tensors_[order_[next_]] : nullptr;
    if (!known || box.offsets.size() != found->data.shape.size() ||
        box.sizes.size() != found->data.shape.size() || !inside(box, found->data.shape))
        return wrong(Errc::plan_shape_mismatch, "resolve tensor", item.fqn,
                     fmt::format("this rank has no destination at {} that holds {}; resolve only "
                                 "items of the plan that this planner made",
                                 in_words(item.dest_index), in_words(box)));
    MutableTensorView view = found->data;
    if (item.lengths == view.shape)
        return view;
    if (view.strides.empty())
        view.strides = contiguous_strides(view.shape);
    if (view.strides.size() != view.shape.size())
        return wrong(Errc::plan_shape_mismatch, "resolve tensor", item.fqn,
                     fmt::format("the destination at {} has {} strides for {} dimensions",
                                 in_words(item.dest_index), view.strides.size(),
                                 view.shape.size()));
    std::int64_t elements = 0; // from the destination's first to the item's first
    for (std::size_t d = 0; d < view.shape.size(); ++d)
        elements += static_cast<std::int64_t>(item.dest_offsets[d]) * view.strides[d];
    const auto width = static_cast<std::int64_t>(bits(view.dtype));
    if (width % 8 != 0 && elements % 8 * width % 8 != 0)
        return wrong(Errc::plan_partial_byte, "resolve tensor", item.fqn,
                     fmt::format("{} begins inside a byte of its destination", in_words(box)));
    view.data += width % 8 == 0 ? elements * (width / 8) : elements * width / 8;
    view.shape = item.lengths;
    return view;
}

} // namespace safering
