// How a tensor was cut, and where its pieces lie.
#pragma once

#include <cstdint>
#include <string>

#include <safering/checkpoint.hpp>

#include "tensor_tree.hpp"

namespace safering::tools {

/// What alignment() tells at most: no reader needs more.
inline constexpr std::uint64_t most_alignment = 4096;

/// The largest power of two that divides the place in its file of every stored chunk.
std::uint64_t alignment(const TensorStorageMetadata& tensor);
std::uint64_t alignment(const StorageInfo& storage);

/// "4 along 0", "2 x 2 grid", "3 boxes"; empty for a tensor that is stored and was saved in one piece.
std::string sharding_text(const CheckpointInfo& info, const NamedStorage& tensor);

/// The name of the file that holds the chunk.
std::string file_name(const Metadata& metadata, const StorageInfo& storage);

} // namespace safering::tools
