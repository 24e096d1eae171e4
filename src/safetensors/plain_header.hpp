// The quick way through a header in the form that nearly all writers give it.
#pragma once

#include <optional>
#include <string_view>

#include "safetensors/header.hpp"

namespace safering::safetensors {

/// The table in the order of the text where it is plain (no escapes, no unknown fields) and breaks no rule of
/// parse_header's; else nothing, and the long way tells why. `json` must be valid UTF-8.
std::optional<Header> parse_plain_header(std::string_view json, const HeaderLimits& limits);

} // namespace safering::safetensors
