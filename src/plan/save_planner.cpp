#include <safering/planner.hpp>

#include <algorithm>
#include <tuple>

#include <fmt/format.h>

#include "large_memory.hpp"
#include "plan/local_parts.hpp"
#include "plan/sorted.hpp"
#include "plan/text.hpp"

namespace safering {

namespace {

// A name may have several parts here, and parts without elements may begin where others do.
auto key(const TensorName& fqn, const Shape& offsets, const Shape& sizes) {
    return std::tie(fqn, offsets, sizes);
}
auto key(const LocalTensor& tensor) {
    return key(tensor.fqn, tensor.offsets, tensor.data.shape);
}

} // namespace

SavePlanner::~SavePlanner() = default;

DefaultSavePlanner::DefaultSavePlanner(std::vector<LocalTensor> tensors, std::uint32_t rank)
    : tensors_(std::move(tensors)), rank_(rank) {
    plan::complete(tensors_);
    order_ = plan::order_by_name(
        tensors_, [](const LocalTensor& tensor) -> std::string_view { return tensor.fqn; },
        [](const LocalTensor& a, const LocalTensor& b) { return key(a) < key(b); });
}

SavePlan DefaultSavePlanner::create_local_plan() const {
    SavePlan plan{rank_, {}, {}};
    reserve_large(plan.items, tensors_.size());
    for (const std::uint32_t place : order_) {
        const LocalTensor& tensor = tensors_[place];
        const bool whole = tensor.data.shape == tensor.size;
        plan.items.push_back({tensor.fqn,
                              whole ? WriteItemType::tensor : WriteItemType::shard,
                              tensor.data.dtype,
                              {tensor.offsets, tensor.data.shape},
                              tensor.size});
    }
    return plan;
}

Result<TensorView> DefaultSavePlanner::resolve_data(const WriteItem& item) {
    const auto wanted = key(item.fqn, item.chunk.offsets, item.chunk.sizes);
    // Items come in plan order, which is ours, less what other ranks save: look at the next one first.
    const auto key_at = [&](std::uint32_t place) { return key(tensors_[place]); };
    const auto is_at = [&](std::size_t at) {
        return at < order_.size() && key_at(order_[at]) == wanted;
    };
    if (!is_at(next_))
        next_ = static_cast<std::size_t>(
            std::ranges::lower_bound(order_, wanted, std::less(), key_at) - order_.begin());
    const bool known = is_at(next_);
    const LocalTensor* found = known ? &tensors_[order_[next_++]] : nullptr;
    if (!known || found->data.dtype != item.dtype) {
        auto error = fail(Errc::plan_shape_mismatch, "resolve data",
                          fmt::format("this rank has no {} chunk {} of it; resolve only items of "
                                      "the plan that this planner made",
                                      name(item.dtype), plan::in_words(item.chunk)));
        error.error().tensor = item.fqn;
        return error;
    }
    return found->data;
}

} // namespace safering
