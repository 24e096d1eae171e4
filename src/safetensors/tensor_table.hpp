// The order of tensors in the data section: sort a table by offset and prove that it covers the
// data. (assign_offsets, its counterpart for writing, is declared in header.hpp.)
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "safetensors/header.hpp"

namespace safering::safetensors {

/// Sorts `tensors` by offset, empty tensors before the one that begins where they lie, and
/// otherwise in the order given. Then checks that they start at 0, leave no hole and no overlap,
/// and end exactly at `data_bytes`. Errors: header_offsets_beyond_file, header_hole,
/// header_overlap, header_missing_data, header_trailing_data.
Result<void> order_tensors(std::vector<TensorEntry>& tensors, std::uint64_t data_bytes,
                           const std::string& file);

} // namespace safering::safetensors
