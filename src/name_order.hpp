// The order of many names that share long beginnings, as the names of a model's tensors do.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace safering {

/// Places of the names in rising order; equal names in the order given. Fewer than 2^32 names.
std::vector<std::uint32_t> name_order(std::span<const std::string_view> names);

} // namespace safering
