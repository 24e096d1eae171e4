// A made-up model for the tests: tensors with random bytes, cut for any number of ranks, and whole saves
// and loads of it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <safering/checkpoint.hpp>

namespace safering::test {

struct TestTensor {
    std::string name;
    Dtype dtype = Dtype::u8;
    Shape shape;
    std::vector<std::byte> bytes;
};
using Model = std::vector<TestTensor>;

/// Random bytes of the right number.
TestTensor make_tensor(std::string name, Dtype dtype, Shape shape, std::uint64_t seed);
/// Every dtype, ranks 0 to 4, empty tensors, odd sizes, names of all kinds. About `megabytes` large.
Model make_model(std::uint64_t seed, std::uint64_t megabytes = 1);

/// A few tensors of odd sizes.
Model odd_model(std::uint64_t seed);
/// `rest` behind a tensor "seed" that holds the number, so that a mixture of two models shows.
Model with_seed(std::uint64_t seed, Model rest);
/// That of a model which has one.
std::optional<std::uint64_t> seed_of(const Model& model);

/// How each rank's part of a tensor is chosen.
struct Sharding {
    std::uint32_t ranks = 1;
    /// Dimension that is cut in `ranks` uneven parts where the tensor has it; others are replicated.
    std::size_t dimension = 0;
};
/// The box of `rank`; the whole tensor where it is replicated.
ChunkStorageMetadata box_of(const TestTensor& tensor, Sharding sharding, std::uint32_t rank);
/// The bytes of a box, packed.
std::vector<std::byte> bytes_of(const TestTensor& tensor, const ChunkStorageMetadata& box);

/// Memory and planner of one rank.
struct Rank {
    std::vector<std::unique_ptr<std::vector<std::byte>>> memory;
    std::vector<LocalTensor> tensors;
};
Rank cut(const Model& model, Sharding sharding, std::uint32_t rank);
/// Every tensor, whole, to be loaded into the model's own bytes.
std::vector<LocalDestination> whole_destinations(Model& model);

/// A whole save by `sharding.ranks` ranks, each with the reactor at its place (the last one serves the
/// rest), plans and results carried as bytes.
Result<SaveReport> save(const Model& model, Sharding sharding, const std::string& path,
                        const WriterOptions& options,
                        const std::vector<std::shared_ptr<Reactor>>& reactors);

/// Loads with `sharding` and says what differs from the model; empty where nothing does.
std::string differences(const Model& model, Sharding sharding, const std::string& path,
                        const std::shared_ptr<Reactor>& reactor, const ReaderOptions& options = {});

} // namespace safering::test
