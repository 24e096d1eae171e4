// A simulated disk with a reactor, and the words that tests of saves on it share.
#pragma once

#include <memory>
#include <string>

#include <gtest/gtest.h>

#include "io/simulated_disk.hpp"
#include "model.hpp"

namespace safering::test {

inline std::shared_ptr<Reactor> make_reactor(const std::shared_ptr<SimulatedDisk>& disk) {
    // Small buffers, so that a small model has several cells.
    return make_simulated_reactor(disk, {.buffer_bytes = 16 << 10, .buffer_count = 3});
}

/// A few tensors, enough for two files, an inner shard, a scalar and something odd.
inline Model small_model(std::uint64_t seed) {
    return {make_tensor("a.weight", Dtype::bf16, {64, 96}, seed),
            make_tensor("b.bias", Dtype::f32, {33}, seed + 1),
            make_tensor("c.scale", Dtype::f32, {}, seed + 2),
            make_tensor("d.block", Dtype::u8, {8, 4096}, seed + 3)};
}

inline WriterOptions two_files(const Model& model) {
    WriterOptions options;
    for (std::size_t i = 0; i < model.size(); ++i)
        options.fqn_to_index_mapping[model[i].name] = static_cast<std::uint32_t>(i % 2 + 1);
    return options;
}

class OnDisk : public testing::Test {
  protected:
    OnDisk() {
        disk->make_directory("/ckpt");
        reactor = make_reactor(disk);
    }
    Result<SaveReport> save_model(const Model& model, Sharding sharding = {2, 0},
                                  const WriterOptions& options = {}) {
        return save(model, sharding, path, options, {reactor});
    }
    /// "" where the checkpoint on the disk is this model, whole.
    std::string differs(const Model& model) { return differences(model, {1, 0}, path, reactor); }
    Error load_error(const ReaderOptions& options = {}) {
        HuggingFaceStorageReader reader(path, options, reactor);
        auto metadata = reader.read_metadata();
        return metadata ? Error{} : metadata.error();
    }

    const std::string path = "/ckpt/step";
    std::shared_ptr<SimulatedDisk> disk = std::make_shared<SimulatedDisk>();
    std::shared_ptr<Reactor> reactor;
};

} // namespace safering::test
