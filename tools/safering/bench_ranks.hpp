// The ranks of a benchmark: threads of one process, each with its own reactor, writer and reader,
// and the memory of a trainer's rank.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <safering/storage_reader.hpp>
#include <safering/storage_writer.hpp>

#include "bench_model.hpp"

namespace safering::tools {

/// Allocated as PyTorch does on the CPU: ordinary memory, aligned to 64 bytes, so
/// neither pages nor blocks.
struct FreeMemory {
    void operator()(std::byte* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<std::byte[], FreeMemory>;

/// Of all ranks together, and of each.
struct RanksLoad {
    std::uint64_t tensor_bytes = 0;
    std::uint64_t read_bytes = 0;
    ExchangeReport exchange;
    std::vector<RankReport> ranks;
};

/// Whatever goes wrong is thrown as Exception.
class Ranks {
  public:
    Ranks(const std::vector<ModelTensor>& model, unsigned ranks, unsigned shard_dimension);
    ~Ranks();

    /// Bytes of all ranks' parts, replicas counted on every rank that holds one.
    std::uint64_t held_bytes() const;
    /// Makes each rank's reactor; before the first save.
    void start(const ReactorOptions& options);
    Reactor& reactor() { return *reactors_.front(); }

    /// A whole save, from the local plans to the commit.
    SaveReport save(const std::string& path);
    /// A whole load into memory that was touched before, the headers and plans included.
    RanksLoad load(const std::string& path);
    /// Throws checkpoint_digest_mismatch, with the tensor and the place of the first byte that
    /// differs, if the last load did not bring back what was saved.
    void compare() const;

  private:
    struct Part {
        TensorName fqn;
        Shape size;
        Shard shard;
        std::size_t bytes = 0;
        Memory saved;
        Memory loaded;
    };

    std::vector<LocalTensor> sources(unsigned rank) const;
    std::vector<LocalDestination> destinations(unsigned rank) const;
    /// Runs `work` for each rank, the first on this thread, waits for all, and throws the first error by rank.
    void on_every_rank(const std::function<void(unsigned)>& work) const;

    std::vector<std::vector<Part>> parts_;
    std::vector<std::shared_ptr<Reactor>> reactors_;
};

} // namespace safering::tools
