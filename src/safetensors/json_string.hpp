// Text as a JSON string.
#pragma once

#include <string>
#include <string_view>

namespace safering::safetensors {

/// Appends `text`, which must be valid UTF-8, in quotes; escapes what JSON demands and nothing more.
void append_json_string(std::string& out, std::string_view text);

} // namespace safering::safetensors
