// One-call saving and loading for programs that just have tensors: one safetensors file, with the
// guarantees of a checkpoint (atomic, durable, an older file of the name intact until the new one is whole).
#pragma once

#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <safering/storage_reader.hpp>
#include <safering/storage_writer.hpp>

namespace safering {

struct NamedTensor {
    std::string name;
    TensorView data;
};

/// Writes `path` (any name; its directory must exist), with just these `metadata`. Throws Exception. Blocks.
SAFERING_API SaveReport
save_file(const std::string& path, std::span<const NamedTensor> tensors,
          const std::vector<std::pair<std::string, std::string>>& metadata = {},
          std::shared_ptr<Reactor> reactor = nullptr);

struct LoadedFile {
    /// Contiguous; each view's owner keeps the memory of all alive.
    std::map<std::string, MutableTensorView, std::less<>> tensors;
    std::vector<std::pair<std::string, std::string>> metadata;
    LoadReport report;
};

/// Reads a safetensors file, or every tensor of a checkpoint directory, into fresh memory. Throws Exception
/// (checkpoint_over_budget where the tensors need more than `memory_bytes`; 0 means no limit). Blocks.
SAFERING_API LoadedFile load_file(const std::string& path, std::uint64_t memory_bytes = 0,
                                  std::shared_ptr<Reactor> reactor = nullptr);

} // namespace safering
