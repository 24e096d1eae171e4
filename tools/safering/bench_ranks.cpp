#include "bench_ranks.hpp"

#include <algorithm>
#include <cstring>
#include <future>
#include <new>

#include <fmt/format.h>

#include "text.hpp"

namespace safering::tools {

namespace {

constexpr Dtype made_dtype = Dtype::bf16;

Memory allocate(std::size_t bytes) {
    constexpr std::size_t alignment = 64;
    auto* memory =
        static_cast<std::byte*>(std::aligned_alloc(alignment, round_up(bytes, alignment)));
    if (!memory)
        throw std::bad_alloc();
    return Memory(memory);
}

// Bytes that no compression, deduplication or lucky offset can stand in for (xorshift64*).
void fill(std::byte* memory, std::size_t bytes, std::uint64_t seed) {
    std::uint64_t state = seed * 0x9E3779B97F4A7C15 + 1;
    for (std::size_t at = 0; at < bytes; at += sizeof state) {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        const std::uint64_t value = state * 0x2545F4914F6CDD1D;
        std::memcpy(memory + at, &value, std::min(sizeof value, bytes - at));
    }
}

} // namespace

Ranks::Ranks(const std::vector<ModelTensor>& model, unsigned ranks, unsigned shard_dimension)
    : parts_(ranks) {
    for (unsigned rank = 0; rank < ranks; ++rank) {
        for (std::size_t i = 0; i < model.size(); ++i) {
            Part part;
            part.fqn = model[i].fqn;
            part.size = model[i].shape;
            part.shard = shard_of(part.size, shard_dimension, rank, ranks);
            if (part.shard.empty())
                continue;
            part.bytes = value_or_throw(byte_size(made_dtype, part.shard.sizes));
            part.saved = allocate(part.bytes);
            part.loaded = allocate(part.bytes);
            // Replicas must agree, whichever rank's is saved.
            const bool replicated = shard_dimension >= part.size.size();
            fill(part.saved.get(), part.bytes, i * ranks + (replicated ? 0 : rank));
            std::memset(part.loaded.get(), 0, part.bytes);
            parts_[rank].push_back(std::move(part));
        }
    }
}

Ranks::~Ranks() = default;

std::uint64_t Ranks::held_bytes() const {
    std::uint64_t bytes = 0;
    for (const std::vector<Part>& parts : parts_)
        for (const Part& part : parts)
            bytes += part.bytes;
    return bytes;
}

void Ranks::start(const ReactorOptions& options) {
    for (std::size_t rank = 0; rank < parts_.size(); ++rank)
        reactors_.push_back(value_or_throw(Reactor::create(options)));
}

std::vector<LocalTensor> Ranks::sources(unsigned rank) const {
    std::vector<LocalTensor> tensors;
    tensors.reserve(parts_[rank].size());
    for (const Part& part : parts_[rank]) {
        const TensorView view{
            .data = part.saved.get(), .dtype = made_dtype, .shape = part.shard.sizes};
        tensors.push_back({part.fqn, view, part.size, part.shard.offsets});
    }
    return tensors;
}

std::vector<LocalDestination> Ranks::destinations(unsigned rank) const {
    std::vector<LocalDestination> tensors;
    tensors.reserve(parts_[rank].size());
    for (const Part& part : parts_[rank]) {
        const MutableTensorView view{
            .data = part.loaded.get(), .dtype = made_dtype, .shape = part.shard.sizes};
        tensors.push_back({part.fqn, view, part.size, part.shard.offsets});
    }
    return tensors;
}

void Ranks::on_every_rank(const std::function<void(unsigned)>& work) const {
    // The first one on this thread, as a trainer's ranks have one each that stays: a new one's first allocations are
    // pages that the kernel has to clear.
    std::packaged_task<void(unsigned)> first(work);
    std::vector<std::future<void>> ranks;
    ranks.push_back(first.get_future());
    for (unsigned rank = 1; rank < parts_.size(); ++rank)
        ranks.push_back(std::async(std::launch::async, work, rank));
    first(0);
    for (const std::future<void>& rank : ranks)
        rank.wait();
    for (std::future<void>& rank : ranks)
        rank.get();
}

SaveReport Ranks::save(const std::string& path) {
    const std::size_t ranks = parts_.size();
    std::vector<HuggingFaceStorageWriter> writers;
    std::vector<DefaultSavePlanner> planners;
    for (unsigned rank = 0; rank < ranks; ++rank) {
        writers.emplace_back(path, WriterOptions{}, reactors_[rank]);
        planners.emplace_back(sources(rank), rank);
    }
    HuggingFaceStorageWriter& coordinator = writers.front();

    std::vector<SavePlan> plans(ranks);
    on_every_rank([&](unsigned rank) {
        plans[rank] =
            value_or_throw(writers[rank].prepare_local_plan(planners[rank].create_local_plan()));
    });
    GlobalSavePlan global = value_or_throw(create_global_plan(std::move(plans)));
    plans = value_or_throw(coordinator.prepare_global_plan(std::move(global.plans)));

    std::vector<WriteResults> results(ranks);
    on_every_rank([&](unsigned rank) {
        results[rank] = writers[rank].write_data(plans[rank], planners[rank]).get();
    });
    return value_or_throw(coordinator.finish(global.metadata, std::move(results)));
}

RanksLoad Ranks::load(const std::string& path) {
    const std::size_t ranks = parts_.size();
    std::vector<HuggingFaceStorageReader> readers;
    std::vector<DefaultLoadPlanner> planners;
    for (unsigned rank = 0; rank < ranks; ++rank) {
        readers.emplace_back(path, ReaderOptions{}, reactors_[rank]);
        planners.emplace_back(destinations(rank));
    }
    std::vector<LoadPlan> plans(ranks);
    on_every_rank([&](unsigned rank) {
        const Metadata metadata = value_or_throw(readers[rank].read_metadata());
        plans[rank] = value_or_throw(readers[rank].prepare_local_plan(
            value_or_throw(planners[rank].create_local_plan(metadata))));
    });
    if (ranks > 1)
        plans = value_or_throw(readers.front().prepare_global_plan(std::move(plans)));
    std::vector<LoadReport> reports(ranks);
    on_every_rank([&](unsigned rank) {
        reports[rank] = value_or_throw(readers[rank].read_data(plans[rank], planners[rank]));
    });
    RanksLoad all;
    for (unsigned rank = 0; rank < ranks; ++rank) {
        LoadReport& report = reports[rank];
        all.tensor_bytes += report.tensor_bytes;
        all.read_bytes += report.read_bytes;
        all.exchange.process_memory_bytes += report.exchange.process_memory_bytes;
        all.exchange.shared_memory_bytes += report.exchange.shared_memory_bytes;
        all.ranks.push_back(
            {rank, report.work, report.reactor.backend, std::move(report.reactor.reason)});
    }
    return all;
}

void Ranks::compare() const {
    for (unsigned rank = 0; rank < parts_.size(); ++rank) {
        for (const Part& part : parts_[rank]) {
            if (std::memcmp(part.saved.get(), part.loaded.get(), part.bytes) == 0)
                continue;
            const auto [saved, loaded] =
                std::mismatch(part.saved.get(), part.saved.get() + part.bytes, part.loaded.get());
            throw Exception({.code = Errc::checkpoint_digest_mismatch,
                             .operation = "compare what was loaded with what was saved",
                             .tensor = std::string(part.fqn),
                             .detail = fmt::format(
                                 "rank {}'s part {} at {} differs from byte {} on", rank,
                                 format_shape(part.shard.sizes), format_shape(part.shard.offsets),
                                 saved - part.saved.get())});
        }
    }
}

} // namespace safering::tools
