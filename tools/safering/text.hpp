// Sizes, rates and shapes as people write them.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <safering/tensor.hpp>

#include "plan/text.hpp"

namespace safering::tools {

/// "4096", "5GB" (decimal), "1.5GiB" (binary), any case, blanks before the suffix allowed; a suffix
/// without the B counts too. Nothing where the text is not a size or passes 2^63.
std::optional<std::uint64_t> parse_bytes(std::string_view text);

/// "86.7 MiB", and "12 B" below one KiB.
std::string format_bytes(std::uint64_t bytes);
/// "[32000, 4096]"
std::string format_shape(const Shape& shape);
/// "1 file", "2 files"
using plan::counted;
double gib_per_second(std::uint64_t bytes, std::chrono::duration<double> time);

} // namespace safering::tools
