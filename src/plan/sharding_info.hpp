// DCP_SHARDING_INFO: the JSON text in a shard's __metadata__ that says where its tensors belong,
// {"fqn":{"saved_offsets":[0,8]}}, [] for a scalar (PyTorch 2.13, _hf_utils.py).
#pragma once

#include <string>
#include <string_view>

#include <safering/tensor.hpp>

namespace safering::plan {

class ShardingInfo {
  public:
    /// `fqn` must be valid UTF-8 (write_header refuses other names) and not have been added before.
    void add(std::string_view fqn, const Shape& offsets);
    std::string text() &&;

  private:
    std::string text_ = "{";
};

} // namespace safering::plan
