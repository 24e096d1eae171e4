// What the one coordinator of many ranks pays: its calls, with plans and results that nobody's data stands behind.
// Prints the seconds and the memory of each, and the bytes of plan that a rank gets. The files are made at their full
// size and never written, so the disk under DIR plays little part in it.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <filesystem>

#include <CLI/CLI.hpp>
#include <fmt/core.h>

#include <safering/storage_reader.hpp>
#include <safering/storage_writer.hpp>

#include "checkpoint/planned_box.hpp"

namespace {

using namespace safering;

struct Options {
    std::string directory;
    std::uint32_t ranks = 1024;
    std::uint32_t tensors = 1000;
    std::uint32_t files = 100;
    bool sharded = false;
};

double seconds(const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
}

/// Runs `call`, prints what it took, and gives back its value.
template <typename Call>
auto timed(const char* name, Call call) {
    const auto spent = [] {
        rusage usage{};
        getrusage(RUSAGE_SELF, &usage);
        return seconds(usage.ru_utime) + seconds(usage.ru_stime);
    };
    const double processor = spent();
    const auto begin = std::chrono::steady_clock::now();
    auto value = call();
    const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - begin;
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    fmt::print("{:<22} {:>7.2f} s {:>7.2f} CPU-s   {:>5.2f} GiB at most so far\n", name,
               wall.count(), spent() - processor, static_cast<double>(usage.ru_maxrss) / (1 << 20));
    return value;
}

std::string tensor_name(std::uint64_t n) {
    return fmt::format("model.layers.{}.mlp.experts.{}.weight", n / 1000, n % 1000);
}

// Every rank has tensors of its own, or a row block of each of them.
std::vector<SavePlan> make_plans(const Options& options) {
    constexpr std::uint64_t rows = 2, columns = 64;
    std::vector<SavePlan> plans(options.ranks);
    for (std::uint32_t rank = 0; rank < options.ranks; ++rank) {
        plans[rank].rank = rank;
        for (std::uint64_t t = 0; t < options.tensors; ++t) {
            const std::uint64_t n = options.sharded ? t : rank * std::uint64_t{options.tensors} + t;
            WriteItem item{tensor_name(n),
                           WriteItemType::tensor,
                           Dtype::bf16,
                           {{0, 0}, {rows, columns}},
                           {rows, columns}};
            if (options.sharded) {
                item.type = WriteItemType::shard;
                item.chunk.offsets = {rank * rows, 0};
                item.size = {options.ranks * rows, columns};
            }
            plans[rank].items.push_back(std::move(item));
        }
    }
    return plans;
}

// As write_data of the rank would report it.
WriteResults results_of(const SavePlan& plan) {
    const StoragePlan& storage = *plan.storage;
    WriteResults results{.rank = plan.rank, .attempt = storage.attempt};
    for (const PlannedFile& file : storage.files)
        results.files.push_back(file.name);
    for (std::size_t i = 0; i < plan.items.size(); ++i) {
        const WriteItem& item = plan.items[i];
        const auto stored = value_or_throw(checkpoint::file_box(plan, item));
        const ItemPlacement& placement = storage.placements[i];
        const ByteRange hull = stored.hull().shifted(placement.tensor_begin);
        const std::uint64_t cells =
            (hull.end - 1) / storage.chunk_bytes - hull.begin / storage.chunk_bytes + 1;
        const std::uint64_t bytes = value_or_throw(byte_size(item.dtype, item.chunk.sizes));
        const auto& whole = checkpoint::stored_box(plan, item).stored;
        results.items.push_back(
            {.index = item.index(),
             .size_in_bytes = bytes,
             .storage = {.file = placement.file,
                         .offset = placement.tensor_begin,
                         .length = value_or_throw(byte_size(item.dtype, whole))},
             .digests = Digests(cells, i)});
    }
    return results;
}

void run(const Options& options) {
    const std::string path = options.directory + "/coordinator";
    WriterOptions writing;
    const std::uint64_t names =
        options.sharded ? options.tensors : std::uint64_t{options.ranks} * options.tensors;
    for (std::uint64_t n = 0; n < names; ++n)
        writing.fqn_to_index_mapping.emplace(tensor_name(n),
                                             static_cast<std::uint32_t>(1 + n % options.files));
    HuggingFaceStorageWriter writer(path, writing);
    auto local = make_plans(options);
    fmt::print("{} ranks x {} tensors, {}, {} files\n", options.ranks, options.tensors,
               options.sharded ? "sharded over all ranks" : "each on one rank", options.files);

    auto global = timed("create_global_plan",
                        [&] { return value_or_throw(create_global_plan(std::move(local))); });
    const auto plans = timed("prepare_global_plan", [&] {
        return value_or_throw(writer.prepare_global_plan(std::move(global.plans)));
    });
    std::size_t largest = 0, all = 0;
    timed("plans to bytes", [&] {
        for (const SavePlan& plan : plans) {
            const std::size_t size = to_bytes(plan).size();
            largest = std::max(largest, size);
            all += size;
        }
        return 0;
    });
    std::vector<WriteResults> results;
    for (const SavePlan& plan : plans)
        results.push_back(results_of(plan));
    timed("finish",
          [&] { return value_or_throw(writer.finish(global.metadata, std::move(results))); });
    HuggingFaceStorageReader reader(path);
    const auto metadata =
        timed("read_metadata", [&] { return value_or_throw(reader.read_metadata()); });
    fmt::print("{} tensors; a rank's plan: {} bytes at most, {} on average\n",
               metadata.tensors.size(), largest, all / plans.size());
    std::filesystem::remove_all(path);
}

} // namespace

int main(int argc, char** argv) {
    Options options;
    CLI::App app("The coordinator of a save by very many ranks, by simulation");
    app.add_option("DIR", options.directory, "where the checkpoint is made, and removed again")
        ->required()
        ->check(CLI::ExistingDirectory);
    app.add_option("--ranks", options.ranks)->check(CLI::PositiveNumber)->capture_default_str();
    app.add_option("--tensors", options.tensors, "of a rank")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--files", options.files)->check(CLI::PositiveNumber)->capture_default_str();
    app.add_flag("--sharded", options.sharded, "each tensor over all ranks, not on one");
    CLI11_PARSE(app, argc, argv);
    try {
        run(options);
    } catch (const Exception& exception) {
        fmt::print(stderr, "coordinator: {}\n", exception.what());
        return 1;
    }
}
