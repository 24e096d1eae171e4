// Saves a real model from four ranks and loads it back with three that hold it differently.
//
//   quickstart SOURCE.safetensors DESTINATION
//
// The ranks are threads here, each with a writer or reader and a reactor of its own, and
// they exchange plans and results as bytes: what crosses between them could as well go
// through MPI or a socket.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include <safering/save_load.hpp>

namespace {

using namespace safering;

using Tensors = std::map<std::string, MutableTensorView, std::less<>>;

constexpr unsigned saving_ranks = 4;
constexpr unsigned loading_ranks = 3;
constexpr std::uint32_t output_files = 2;

struct Part {
    Shape offsets;
    Shape sizes;
};

// A rank's part of a tensor cut along `dimension`; nothing is left for the last
// ranks of a small tensor.
Part part_of(const Shape& shape, std::size_t dimension, unsigned rank, unsigned ranks) {
    Part part{Shape(shape.size(), 0), shape};
    if (shape.empty()) {
        // A scalar cannot be cut. All ranks offer theirs, and create_global_plan lets one save it.
        return part;
    }
    const std::uint64_t extent = shape[dimension];
    const std::uint64_t each = (extent + ranks - 1) / ranks;
    part.offsets[dimension] = std::min(extent, rank * each);
    part.sizes[dimension] = std::min(extent - part.offsets[dimension], each);
    return part;
}

bool is_empty(const Part& part) {
    return std::ranges::count(part.sizes, 0u) != 0;
}

// The part, where it lies inside the whole tensor; no byte is copied.
TensorView view_of(const MutableTensorView& whole, const Part& part) {
    const Strides strides = contiguous_strides(whole.shape);
    std::int64_t elements = 0;
    for (std::size_t d = 0; d < strides.size(); ++d)
        elements += static_cast<std::int64_t>(part.offsets[d]) * strides[d];
    return {whole.data + elements * (bits(whole.dtype) / 8), whole.dtype, part.sizes, strides,
            whole.owner};
}

// Runs `work` as every rank, waits for all, and passes on the first exception.
void on_every_rank(unsigned ranks, const std::function<void(unsigned)>& work) {
    std::vector<std::future<void>> running;
    for (unsigned rank = 0; rank < ranks; ++rank)
        running.push_back(std::async(std::launch::async, work, rank));
    for (const std::future<void>& rank : running)
        rank.wait();
    for (std::future<void>& rank : running)
        rank.get();
}

// Which tensor goes to which file: the largest first, each to the file that is smaller so far.
FqnToIndexMapping split_into_files(const Tensors& tensors) {
    std::vector<std::pair<std::uint64_t, std::string>> by_size;
    for (const auto& [name, tensor] : tensors)
        by_size.emplace_back(value_or_throw(byte_size(tensor.dtype, tensor.shape)), name);
    std::ranges::sort(by_size, std::greater<>());
    std::vector<std::uint64_t> file_bytes(output_files, 0);
    FqnToIndexMapping mapping;
    for (const auto& [bytes, name] : by_size) {
        const auto smallest = std::ranges::min_element(file_bytes);
        *smallest += bytes;
        mapping[name] = static_cast<std::uint32_t>(smallest - file_bytes.begin()) + 1;
    }
    return mapping;
}

SaveReport save(const Tensors& tensors, const std::string& path) {
    std::vector<HuggingFaceStorageWriter> writers;
    std::vector<DefaultSavePlanner> planners;
    for (unsigned rank = 0; rank < saving_ranks; ++rank) {
        std::vector<LocalTensor> held;
        for (const auto& [name, tensor] : tensors) {
            const Part part = part_of(tensor.shape, 0, rank, saving_ranks);
            if (!is_empty(part))
                held.push_back({name, view_of(tensor, part), tensor.shape, part.offsets});
        }
        planners.emplace_back(std::move(held), rank);
        writers.emplace_back(path,
                             WriterOptions{.fqn_to_index_mapping = split_into_files(tensors)});
    }

    // Every rank plans what it holds; the plans go to the coordinator.
    std::vector<std::vector<std::byte>> messages(saving_ranks);
    on_every_rank(saving_ranks, [&](unsigned rank) {
        messages[rank] = to_bytes(
            value_or_throw(writers[rank].prepare_local_plan(planners[rank].create_local_plan())));
    });

    // The coordinator fixes the place of every byte; each rank's part of that goes back to it.
    HuggingFaceStorageWriter& coordinator = writers.front();
    std::vector<SavePlan> plans;
    for (const auto& message : messages)
        plans.push_back(value_or_throw(save_plan_from_bytes(message)));
    GlobalSavePlan global = value_or_throw(create_global_plan(std::move(plans)));
    plans = value_or_throw(coordinator.prepare_global_plan(std::move(global.plans)));
    for (unsigned rank = 0; rank < saving_ranks; ++rank)
        messages[rank] = to_bytes(plans[rank]);

    // Every rank writes into the final files; the results go to the coordinator.
    on_every_rank(saving_ranks, [&](unsigned rank) {
        const SavePlan plan = value_or_throw(save_plan_from_bytes(messages[rank]));
        messages[rank] = to_bytes(writers[rank].write_data(plan, planners[rank]).get());
    });

    // The commit: before it there is no new checkpoint, after it there is a whole and durable one.
    std::vector<WriteResults> results;
    for (const auto& message : messages)
        results.push_back(value_or_throw(write_results_from_bytes(message)));
    return value_or_throw(coordinator.finish(global.metadata, std::move(results)));
}

struct LoadedPart {
    std::string name;
    Part part;
    std::vector<std::byte> memory;
};

// What each rank has after the load: along dimension 1 where there is one.
std::vector<std::vector<LoadedPart>> load(const Tensors& like, const std::string& path) {
    std::vector<std::vector<LoadedPart>> loaded(loading_ranks);
    on_every_rank(loading_ranks, [&](unsigned rank) {
        std::vector<LocalDestination> destinations;
        for (const auto& [name, tensor] : like) {
            const std::size_t dimension = tensor.shape.size() > 1 ? 1 : 0;
            Part part = part_of(tensor.shape, dimension, rank, loading_ranks);
            if (is_empty(part))
                continue;
            std::vector<std::byte> memory(value_or_throw(byte_size(tensor.dtype, part.sizes)));
            destinations.push_back({.fqn = name,
                                    .data = {memory.data(), tensor.dtype, part.sizes},
                                    .size = tensor.shape,
                                    .offsets = part.offsets});
            loaded[rank].push_back({name, std::move(part), std::move(memory)});
        }
        HuggingFaceStorageReader reader(path);
        DefaultLoadPlanner planner(std::move(destinations));
        const LoadPlan plan =
            value_or_throw(planner.create_local_plan(value_or_throw(reader.read_metadata())));
        value_or_throw(reader.read_data(plan, planner));
    });
    return loaded;
}

// Row by row, since a part along dimension 1 is not contiguous in the whole tensor.
bool equal(const TensorView& view, const std::byte* memory) {
    const std::size_t element = bits(view.dtype) / 8;
    if (view.shape.empty())
        return std::memcmp(view.data, memory, element) == 0;
    if (view.shape.size() == 1)
        return std::memcmp(view.data, memory, view.shape[0] * element) == 0;
    TensorView row{view.data, view.dtype, Shape(view.shape.begin() + 1, view.shape.end()),
                   Strides(view.strides.begin() + 1, view.strides.end())};
    const std::size_t row_bytes = value_or_throw(byte_size(row.dtype, row.shape));
    for (std::uint64_t i = 0; i < view.shape[0]; ++i)
        if (!equal({view.data + static_cast<std::int64_t>(i) * view.strides[0] *
                                    static_cast<std::int64_t>(element),
                    row.dtype, row.shape, row.strides},
                   memory + i * row_bytes))
            return false;
    return true;
}

std::uint64_t compare(const Tensors& tensors, const std::vector<std::vector<LoadedPart>>& loaded) {
    std::uint64_t bytes = 0;
    for (const auto& parts : loaded) {
        for (const LoadedPart& part : parts) {
            if (!equal(view_of(tensors.at(part.name), part.part), part.memory.data()))
                throw Exception({.code = Errc::checkpoint_digest_mismatch,
                                 .operation = "compare",
                                 .tensor = part.name});
            bytes += part.memory.size();
        }
    }
    return bytes;
}

double seconds_since(std::chrono::steady_clock::time_point begin) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void run(const std::string& source, const std::string& destination) {
    const LoadedFile model = load_file(source);
    constexpr double gib = 1024.0 * 1024 * 1024;

    auto begin = std::chrono::steady_clock::now();
    const SaveReport report = save(model.tensors, destination);
    double seconds = seconds_since(begin);
    std::printf("saved   %zu tensors, %.1f MiB, from %u ranks into %u files: %.2f GiB/s, durable\n",
                model.tensors.size(), static_cast<double>(report.tensor_bytes) / gib * 1024,
                saving_ranks, static_cast<unsigned>(report.files),
                static_cast<double>(report.tensor_bytes) / gib / seconds);

    begin = std::chrono::steady_clock::now();
    const auto loaded = load(model.tensors, destination);
    seconds = seconds_since(begin);
    const std::uint64_t bytes = compare(model.tensors, loaded);
    std::printf("loaded  by %u ranks, sharded otherwise: %.2f GiB/s, every byte equal\n",
                loading_ranks, static_cast<double>(bytes) / gib / seconds);
    std::printf("backend %s: %s\n", std::string(name(report.reactor.backend)).c_str(),
                report.reactor.reason.c_str());
}

} // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        std::fprintf(stderr, "usage: quickstart SOURCE.safetensors DESTINATION\n");
        return 2;
    }
    try {
        run(argv[1], argv[2]);
    } catch (const Exception& exception) {
        std::fprintf(stderr, "quickstart: %s\n", exception.error().message().c_str());
        return 1;
    }
    return 0;
}
