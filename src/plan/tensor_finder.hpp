// Tensors of a checkpoint by name, asked for one after the other.
#pragma once

#include <string_view>

#include <safering/plan.hpp>

namespace safering::plan {

/// Looks at the tensor that was found last and at the one behind it before it searches: plans list a tensor's
/// items together and tensors by name. Borrows the map.
class TensorFinder {
  public:
    explicit TensorFinder(const TensorMap& tensors) : tensors_(tensors), last_(tensors.begin()) {}

    /// Null where there is none of that name.
    const TensorStorageMetadata* find(std::string_view fqn) {
        const auto is_here = [&] { return last_ != tensors_.end() && last_->first == fqn; };
        if (is_here())
            return &last_->second;
        if (last_ != tensors_.end())
            ++last_;
        if (!is_here())
            last_ = tensors_.find(fqn);
        return last_ == tensors_.end() ? nullptr : &last_->second;
    }

  private:
    const TensorMap& tensors_;
    TensorMap::const_iterator last_;
};

} // namespace safering::plan
