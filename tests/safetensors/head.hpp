// The head of a safetensors file around a header text.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

namespace safering::safetensors {

inline std::string with_length(std::uint64_t length, const std::string& json = {}) {
    std::string head(sizeof length, '\0');
    std::memcpy(head.data(), &length, sizeof length);
    return head + json;
}

inline std::string head_of(const std::string& json) {
    return with_length(json.size(), json);
}

} // namespace safering::safetensors
