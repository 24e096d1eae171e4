#include <safering/planner.hpp>

#include <algorithm>
#include <tuple>

#include <fmt/format.h>

#include "plan/sorted.hpp"
#include "plan/text.hpp"

namespace safering {

namespace {

// A name may have several parts here, and parts without elements may begin where others do.
auto key(const std::string& fqn, const Shape& offsets, const Shape& sizes) {
    return std::tie(fqn, offsets, sizes);
}
auto key(const LocalTensor& tensor) {
    return key(tensor.fqn, tensor.offsets, tensor.data.shape);
}

} // namespace

SavePlanner::~SavePlanner() = default;

DefaultSavePlanner::DefaultSavePlanner(std::vector<LocalTensor> tensors, std::uint32_t rank)
    : tensors_(std::move(tensors)), rank_(rank) {
    for (LocalTensor& tensor : tensors_)
        if (tensor.size.empty() && tensor.offsets.empty()) {
            tensor.size = tensor.data.shape;
            tensor.offsets.assign(tensor.size.size(), 0);
        }
    plan::sort_by(tensors_, [](const LocalTensor& tensor) { return key(tensor); });
}

SavePlan DefaultSavePlanner::create_local_plan() const {
    SavePlan plan{rank_, {}, {}};
    plan.items.reserve(tensors_.size());
    for (const LocalTensor& tensor : tensors_) {
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
    auto found = tensors_.begin() + static_cast<std::ptrdiff_t>(next_);
    if (found == tensors_.end() || key(*found) != wanted)
        found = std::lower_bound(tensors_.begin(), tensors_.end(), wanted,
                                 [](const LocalTensor& a, const auto& b) { return key(a) < b; });
    next_ = static_cast<std::size_t>(found - tensors_.begin()) + (found != tensors_.end() ? 1 : 0);
    if (found == tensors_.end() || key(*found) != wanted || found->data.dtype != item.dtype) {
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
