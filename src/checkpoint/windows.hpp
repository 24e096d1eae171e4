// The tensors of a checkpoint in pieces that fit a bounded memory. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <safering/storage_writer.hpp>

namespace safering::checkpoint {

/// What a slice's place in a window's memory is a multiple of.
inline constexpr std::uint64_t tensor_alignment = 64;

/// A box of a tensor that fits a window.
struct Slice {
    std::string fqn;
    Dtype dtype = Dtype::u8;
    Shape size;
    ChunkStorageMetadata box;
    std::uint64_t bytes = 0;
};

struct Window {
    std::vector<Slice> slices;
    std::uint64_t bytes = 0;
};

/// Slices in the order of the output files (all in one where `mapping` is empty), gathered into windows of at most
/// `limit_bytes`; a slice that cannot be cut so small has a window of its own.
Result<std::vector<Window>> make_windows(const Metadata& metadata, const FqnToIndexMapping& mapping,
                                         std::uint64_t limit_bytes);

} // namespace safering::checkpoint
