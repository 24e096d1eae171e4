#include "plan/sharding_info.hpp"

#include <utility>

namespace safering::plan {

namespace {

void append_json_string(std::string& out, std::string_view text) {
    constexpr std::string_view hex = "0123456789abcdef";
    out += '"';
    for (const char c : text) {
        const auto byte = static_cast<unsigned char>(c);
        if (c == '"' || c == '\\') {
            out += '\\';
            out += c;
        } else if (byte < 0x20) {
            out += "\\u00";
            out += hex[byte >> 4];
            out += hex[byte & 15];
        } else {
            out += c;
        }
    }
    out += '"';
}

} // namespace

void ShardingInfo::add(std::string_view fqn, const Shape& offsets) {
    if (text_.size() > 1)
        text_ += ',';
    append_json_string(text_, fqn);
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
