#include "model.hpp"

#include <algorithm>
#include <cstring>
#include <random>

#include <fmt/format.h>

namespace safering::test {

TestTensor make_tensor(std::string name, Dtype dtype, Shape shape, std::uint64_t seed) {
    std::vector<std::byte> bytes(byte_size(dtype, shape).value());
    std::mt19937_64 random(seed);
    for (std::byte& byte : bytes)
        byte = static_cast<std::byte>(random());
    return {std::move(name), dtype, std::move(shape), std::move(bytes)};
}

Model make_model(std::uint64_t seed, std::uint64_t megabytes) {
    Model model;
    const auto add = [&](std::string name, Dtype dtype, Shape shape) {
        model.push_back(make_tensor(std::move(name), dtype, std::move(shape), seed + model.size()));
    };
    for (std::size_t d = 0; d < dtype_count; ++d) {
        const auto dtype = static_cast<Dtype>(d);
        add(fmt::format("dtype.{}", name(dtype)), dtype, {6, 8});
    }
    add("scalar", Dtype::f32, {});
    add("empty", Dtype::bf16, {0});
    add("empty.middle", Dtype::bf16, {4, 0, 3});
    add("one", Dtype::i64, {1});
    add("odd", Dtype::u8, {7, 13});
    add("rank4", Dtype::f16, {3, 5, 2, 9});
    add("block", Dtype::u8, {4096});
    add("name with / and .. and \u00e9", Dtype::i8, {17});
    add("", Dtype::u16, {3});
    const std::uint64_t rows = std::max<std::uint64_t>(megabytes * 1024 * 1024 / (2 * 515), 8);
    add("large.odd", Dtype::bf16, {rows / 2, 515});
    add("large.even", Dtype::bf16, {rows / 2, 512});
    return model;
}

Model odd_model(std::uint64_t seed) {
    return {make_tensor("a", Dtype::bf16, {64, 515}, seed),
            make_tensor("b", Dtype::u8, {9, 4096}, seed + 1),
            make_tensor("c", Dtype::f32, {33}, seed + 2)};
}

Model with_seed(std::uint64_t seed, Model rest) {
    rest.insert(rest.begin(), make_tensor("seed", Dtype::u64, {}, 0));
    std::memcpy(rest.front().bytes.data(), &seed, sizeof seed);
    return rest;
}

std::optional<std::uint64_t> seed_of(const Model& model) {
    for (const TestTensor& tensor : model)
        if (tensor.name == "seed" && tensor.bytes.size() == sizeof(std::uint64_t)) {
            std::uint64_t seed;
            std::memcpy(&seed, tensor.bytes.data(), sizeof seed);
            return seed;
        }
    return std::nullopt;
}

ChunkStorageMetadata box_of(const TestTensor& tensor, Sharding sharding, std::uint32_t rank) {
    ChunkStorageMetadata box{Shape(tensor.shape.size(), 0), tensor.shape};
    const bool whole_bytes = bits(tensor.dtype) >= 8;
    if (sharding.ranks == 1 || sharding.dimension >= tensor.shape.size() || !whole_bytes)
        return box;
    // As torch.chunk cuts: equal parts rounded up, the last ones shorter or empty.
    const std::uint64_t extent = tensor.shape[sharding.dimension];
    const std::uint64_t part = (extent + sharding.ranks - 1) / sharding.ranks;
    const std::uint64_t begin = std::min(extent, part * rank);
    box.offsets[sharding.dimension] = begin;
    box.sizes[sharding.dimension] = std::min(extent, begin + part) - begin;
    return box;
}

namespace {

// Calls f(offset in the tensor, offset in the box) for every element of the box.
template <typename F>
void for_each_element(const TestTensor& tensor, const ChunkStorageMetadata& box, F&& f) {
    std::uint64_t count = 1;
    for (const std::uint64_t extent : box.sizes)
        count *= extent;
    for (std::uint64_t i = 0; i < count; ++i) {
        std::uint64_t rest = i;
        std::uint64_t at = 0;
        std::uint64_t stride = 1;
        for (std::size_t d = box.sizes.size(); d-- > 0;) {
            at += (box.offsets[d] + rest % box.sizes[d]) * stride;
            rest /= box.sizes[d];
            stride *= tensor.shape[d];
        }
        f(at, i);
    }
}

} // namespace

std::vector<std::byte> bytes_of(const TestTensor& tensor, const ChunkStorageMetadata& box) {
    if (box.sizes == tensor.shape)
        return tensor.bytes;
    const std::uint64_t item = bits(tensor.dtype) / 8;
    std::vector<std::byte> out(byte_size(tensor.dtype, box.sizes).value());
    for_each_element(tensor, box, [&](std::uint64_t from, std::uint64_t to) {
        std::memcpy(out.data() + to * item, tensor.bytes.data() + from * item, item);
    });
    return out;
}

Rank cut(const Model& model, Sharding sharding, std::uint32_t rank) {
    Rank out;
    for (const TestTensor& tensor : model) {
        const ChunkStorageMetadata box = box_of(tensor, sharding, rank);
        out.memory.push_back(std::make_unique<std::vector<std::byte>>(bytes_of(tensor, box)));
        // A null pointer is fine for no bytes, but a real program rarely has one.
        static std::byte nothing[1];
        std::byte* data = out.memory.back()->empty() ? nothing : out.memory.back()->data();
        out.tensors.push_back({.fqn = tensor.name,
                               .data = {.data = data, .dtype = tensor.dtype, .shape = box.sizes},
                               .size = tensor.shape,
                               .offsets = box.offsets});
    }
    return out;
}

std::vector<LocalDestination> whole_destinations(Model& model) {
    std::vector<LocalDestination> destinations;
    for (TestTensor& tensor : model)
        destinations.push_back(
            {.fqn = tensor.name,
             .data = {.data = tensor.bytes.data(), .dtype = tensor.dtype, .shape = tensor.shape},
             .size = tensor.shape,
             .offsets = Shape(tensor.shape.size(), 0)});
    return destinations;
}

Result<SaveReport> save(const Model& model, Sharding sharding, const std::string& path,
                        const WriterOptions& options,
                        const std::vector<std::shared_ptr<Reactor>>& reactors) {
    std::vector<Rank> ranks;
    std::vector<SavePlan> plans;
    std::vector<std::unique_ptr<DefaultSavePlanner>> planners;
    std::vector<std::unique_ptr<HuggingFaceStorageWriter>> writers;
    for (std::uint32_t rank = 0; rank < sharding.ranks; ++rank) {
        ranks.push_back(cut(model, sharding, rank));
        planners.push_back(std::make_unique<DefaultSavePlanner>(ranks.back().tensors, rank));
        writers.push_back(std::make_unique<HuggingFaceStorageWriter>(
            path, options, reactors[std::min<std::size_t>(rank, reactors.size() - 1)]));
        auto local = writers.back()->prepare_local_plan(planners.back()->create_local_plan());
        if (!local)
            return std::unexpected(local.error());
        plans.push_back(save_plan_from_bytes(to_bytes(*local)).value());
    }
    auto global = create_global_plan(std::move(plans));
    if (!global)
        return std::unexpected(global.error());
    auto prepared = writers[0]->prepare_global_plan(std::move(global->plans));
    if (!prepared)
        return std::unexpected(prepared.error());
    std::vector<std::future<WriteResults>> futures;
    for (std::uint32_t rank = 0; rank < sharding.ranks; ++rank)
        futures.push_back(writers[rank]->write_data(
            save_plan_from_bytes(to_bytes((*prepared)[rank])).value(), *planners[rank]));
    std::vector<WriteResults> results;
    std::optional<Error> error;
    for (auto& future : futures) {
        try {
            results.push_back(write_results_from_bytes(to_bytes(future.get())).value());
        } catch (const Exception& exception) {
            // The cause, and not what follows from it on ranks that exchange with that one.
            if (!error || error->code == Errc::io_peer_lost)
                error = exception.error();
        }
    }
    if (error)
        return std::unexpected(*error);
    return writers[0]->finish(global->metadata, std::move(results));
}

std::string differences(const Model& model, Sharding sharding, const std::string& path,
                        const std::shared_ptr<Reactor>& reactor, const ReaderOptions& options) {
    HuggingFaceStorageReader reader(path, options, reactor);
    auto metadata = reader.read_metadata();
    if (!metadata)
        return metadata.error().message();
    std::string out;
    if (metadata->tensors.size() != model.size())
        out += fmt::format("{} tensors of {}; ", metadata->tensors.size(), model.size());
    for (std::uint32_t rank = 0; rank < sharding.ranks; ++rank) {
        std::vector<LocalDestination> destinations;
        std::vector<std::vector<std::byte>> memory(model.size());
        for (std::size_t i = 0; i < model.size(); ++i) {
            const ChunkStorageMetadata box = box_of(model[i], sharding, rank);
            // One more than needed: an empty vector has no memory, and an overrun would show.
            memory[i].assign(byte_size(model[i].dtype, box.sizes).value() + 1, std::byte{0xA5});
            destinations.push_back(
                {.fqn = model[i].name,
                 .data = {.data = memory[i].data(), .dtype = model[i].dtype, .shape = box.sizes},
                 .size = model[i].shape,
                 .offsets = box.offsets});
        }
        DefaultLoadPlanner planner(std::move(destinations));
        auto plan = planner.create_local_plan(*metadata);
        if (!plan)
            return out + plan.error().message();
        auto loaded = reader.read_data(load_plan_from_bytes(to_bytes(*plan)).value(), planner);
        if (!loaded)
            return out + loaded.error().message();
        for (std::size_t i = 0; i < model.size(); ++i) {
            auto expected = bytes_of(model[i], box_of(model[i], sharding, rank));
            expected.push_back(std::byte{0xA5});
            if (memory[i] != expected)
                out += fmt::format("\"{}\" differs on rank {}; ", model[i].name, rank);
        }
    }
    return out;
}

} // namespace safering::test
