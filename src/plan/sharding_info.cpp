#include "plan/sharding_info.hpp"

#include <utility>

#include "safetensors/json_string.hpp"

namespace safering::plan {

void ShardingInfo::add(std::string_view fqn, const Shape& offsets) {
    if (text_.size() > 1)
        text_ += ',';
    safetensors::append_json_string(text_, fqn);
    text_ += R"(:{"saved_offsets":[)";
    for (std::size_t d = 0; d < offsets.size(); ++d) {
        if (d > 0)
            text_ += ',';
        text_ += std::to_string(offsets[d]);
    }
    text_ += "]}";
}

std::string ShardingInfo::text() && {
    text_ += '}';
    return std::move(text_);
}

} // namespace safering::plan
