// Which tensor a conversion puts into which file. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include <safering/checkpoint.hpp>

namespace safering::checkpoint {

/// Cuts a list of sizes into `files` contiguous parts of about equal bytes, none of them empty while there
/// are sizes enough: the 1-based part of each.
std::vector<std::uint32_t> equal_parts(const std::vector<std::uint64_t>& sizes,
                                       std::uint32_t files);

/// Runs of tensors in name order, so that layers stay together. Empty: all in one file.
Result<FqnToIndexMapping> choose_files(const Metadata& metadata, const ConvertOptions& options);

} // namespace safering::checkpoint
