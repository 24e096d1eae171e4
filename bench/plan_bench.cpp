// Planning and copying, without a disk: what a save costs before and beside its I/O.
#include <sys/mman.h>
#include <sys/resource.h>

#include <cstring>
#include <map>
#include <random>

#include <benchmark/benchmark.h>

#include <safering/planner.hpp>

#include "plan/box.hpp"
#include "plan/copy_kernels.hpp"
#include "plan/layout.hpp"
#include "plan/request_planner.hpp"

namespace safering::plan {
namespace {

constexpr std::uint64_t chunk_bytes = 4 << 20;

double peak_rss_mib() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<double>(usage.ru_maxrss) / 1024;
}

std::string expert_name(std::uint64_t n) {
    return "model.layers." + std::to_string(n / 1000) + ".mlp.experts." +
           std::to_string(n % 1000 / 3) +
           (n % 3 == 0   ? ".gate_proj.weight"
            : n % 3 == 1 ? ".up_proj.weight"
                         : ".down_proj.weight");
}

// `items` in all; every rank holds an eighth of each tensor's rows, or of the tensors.
std::vector<SavePlan> make_plans(std::uint64_t items, std::uint32_t ranks, bool sharded) {
    std::vector<SavePlan> plans(ranks);
    for (std::uint32_t rank = 0; rank < ranks; ++rank) {
        plans[rank].rank = rank;
        plans[rank].items.reserve(items / ranks);
    }
    for (std::uint64_t n = 0; n < items; ++n) {
        const auto rank = static_cast<std::uint32_t>(n % ranks);
        WriteItem item{expert_name(sharded ? n / ranks : n),
                       WriteItemType::tensor,
                       Dtype::bf16,
                       {{0, 0}, {64, 33}},
                       {64, 33}};
        if (sharded) {
            item.type = WriteItemType::shard;
            item.chunk = {{rank * (64 / ranks), 0}, {64 / ranks, 33}};
        }
        plans[rank].items.push_back(std::move(item));
    }
    return plans;
}

std::size_t plan_requests(const SavePlan& plan, const std::vector<ItemPlacement>& placements,
                          std::size_t files) {
    std::vector<std::vector<FileSpan>> spans(files);
    for (std::size_t i = 0; i < plan.items.size(); ++i) {
        const WriteItem& item = plan.items[i];
        const auto box = FileBox::make(item.dtype, item.size, item.chunk.offsets, item.chunk.sizes);
        spans[placements[i].file].push_back({box->hull().shifted(placements[i].tensor_begin),
                                             static_cast<std::uint32_t>(i), !box->contiguous()});
    }
    std::size_t requests = 0;
    for (auto& file : spans)
        requests += RequestPlanner(chunk_bytes).plan_writes(std::move(file))->requests.size();
    return requests;
}

void plan_save(benchmark::State& state, bool sharded) {
    const auto items = static_cast<std::uint64_t>(state.range(0));
    std::size_t requests = 0;
    for (auto _ : state) {
        state.PauseTiming();
        auto plans = make_plans(items, 8, sharded);
        LayoutOptions options;
        for (std::uint64_t n = 0; n < (sharded ? items / 8 : items); ++n)
            options.fqn_to_index_mapping.emplace(expert_name(n),
                                                 static_cast<std::uint32_t>(1 + n % 4));
        state.counters["rss_before_MiB"] = peak_rss_mib();
        state.ResumeTiming();
        auto global = create_global_plan(std::move(plans));
        auto layout = plan_layout(global->plans, options);
        requests = 0;
        for (std::size_t p = 0; p < global->plans.size(); ++p)
            requests +=
                plan_requests(global->plans[p], layout->placements[p], layout->files.size());
        state.PauseTiming();
        global = create_global_plan({});
        layout = Layout{};
        state.ResumeTiming();
    }
    state.counters["requests"] = static_cast<double>(requests);
    state.counters["peak_rss_MiB"] = peak_rss_mib();
}
BENCHMARK_CAPTURE(plan_save, whole_tensors, false)
    ->Arg(1'000'000)
    ->Iterations(1)
    ->Repetitions(3)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(plan_save, sharded_tensors, true)
    ->Arg(1'000'000)
    ->Iterations(1)
    ->Repetitions(3)
    ->Unit(benchmark::kMillisecond);

void serialise_plan(benchmark::State& state) {
    const SavePlan plan = std::move(make_plans(1'000'000, 8, true)[3]);
    std::size_t bytes = 0;
    for (auto _ : state) {
        const auto serialised = to_bytes(plan);
        bytes = serialised.size();
        benchmark::DoNotOptimize(save_plan_from_bytes(serialised));
    }
    state.counters["bytes_an_item"] =
        static_cast<double>(bytes) / static_cast<double>(plan.items.size());
    state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(plan.items.size()));
}
BENCHMARK(serialise_plan)->Unit(benchmark::kMillisecond);

// Memory on huge pages, touched: as buffers and large tensors are.
class Memory {
  public:
    explicit Memory(std::size_t bytes) : bytes_(bytes) {
        void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        SAFERING_ASSERT(at != MAP_FAILED);
        madvise(at, bytes, MADV_HUGEPAGE);
        std::memset(at, 0x5A, bytes);
        data_ = static_cast<std::byte*>(at);
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() { munmap(data_, bytes_); }
    std::byte* data() const { return data_; }

  private:
    std::size_t bytes_;
    std::byte* data_ = nullptr;
};

enum class Move { gather, gather_with_digest, scatter, digest };

// A tensor of `rows` rows is moved cell by cell through a ring of eight cells, as a save moves it.
struct Layout2d {
    Shape stored, offsets, sizes;
    Strides strides;
};

void move_tensor(benchmark::State& state, const Layout2d& layout, Move move) {
    const auto copy =
        BoxCopy::make(Dtype::bf16, layout.stored, layout.offsets, layout.sizes, layout.strides);
    const ByteRange hull = copy->file_box().hull();
    Memory memory(copy->file_box().bytes() + 4096), ring(8 * chunk_bytes);
    Digest digest;
    std::uint64_t turn = 0;
    for (auto _ : state) {
        for (std::uint64_t at = round_down(hull.begin, chunk_bytes); at < hull.end;
             at += chunk_bytes) {
            std::byte* image = ring.data() + turn++ % 8 * chunk_bytes;
            const ByteRange window{at, at + chunk_bytes};
            digest.reset();
            if (move == Move::gather)
                copy->gather(memory.data(), image, window);
            else if (move == Move::gather_with_digest)
                copy->gather(memory.data(), image, window, &digest);
            else if (move == Move::scatter)
                copy->scatter(image, memory.data(), window);
            else
                benchmark::DoNotOptimize(digest_of_image(copy->file_box(), image, window));
            benchmark::DoNotOptimize(digest.value());
        }
        benchmark::ClobberMemory();
    }
    state.SetBytesProcessed(state.iterations() *
                            static_cast<std::int64_t>(copy->file_box().bytes()));
}

const Layout2d contiguous{{8192, 8192}, {0, 0}, {8192, 8192}, {}};
// An inner shard: every fourth KiB of the file's rows.
const Layout2d inner_rows{{32768, 2048}, {0, 512}, {32768, 512}, {}};
// Rows of memory a KiB long in a wider tensor; the file is dense.
const Layout2d outer_rows{{65536, 512}, {0, 0}, {65536, 512}, {512, 1}};
const Layout2d transposed{{4096, 8192}, {0, 0}, {4096, 8192}, {1, 4096}};
#define MOVE(layout, move)                                                                         \
    BENCHMARK_CAPTURE(move_tensor, layout##_##move, layout, Move::move)                            \
        ->Unit(benchmark::kMillisecond)
MOVE(contiguous, gather);
MOVE(contiguous, gather_with_digest);
MOVE(contiguous, scatter);
MOVE(contiguous, digest);
MOVE(inner_rows, gather);
MOVE(inner_rows, gather_with_digest);
MOVE(inner_rows, scatter);
MOVE(inner_rows, digest);
MOVE(transposed, gather);
MOVE(transposed, gather_with_digest);
MOVE(transposed, scatter);

// 100,000 tensors of 4 KiB, each with a BoxCopy and a digest of its own, into cells.
void small_tensors(benchmark::State& state, bool planned) {
    constexpr std::uint64_t count = 100'000, bytes = 4096;
    Memory memory(count * bytes), ring(8 * chunk_bytes);
    Digest digest;
    for (auto _ : state)
        for (std::uint64_t n = 0; n < count; ++n) {
            std::byte* image = ring.data() + n * bytes % (8 * chunk_bytes);
            std::uint64_t value = 0;
            if (planned) {
                value = BoxCopy::make(Dtype::f32, {32, 32}, {0, 0}, {32, 32}, {})
                            ->gather_digested(memory.data() + n * bytes, image, {0, bytes}, digest);
            } else {
                digest.reset();
                digest.update(memory.data() + n * bytes, bytes);
                std::memcpy(image, memory.data() + n * bytes, bytes);
                value = digest.value();
            }
            benchmark::DoNotOptimize(value);
        }
    state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(count * bytes));
    state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(count));
}
BENCHMARK_CAPTURE(small_tensors, box_copies, true)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(small_tensors, by_hand, false)->Unit(benchmark::kMillisecond);

// Where streaming begins to pay: runs of this many bytes into a ring larger than the caches.
void streaming_threshold(benchmark::State& state, bool streaming) {
    const auto run = static_cast<std::size_t>(state.range(0));
    Memory memory(std::size_t{256} << 20), ring(std::size_t{64} << 20);
    for (auto _ : state)
        for (std::size_t at = 0; at + run <= std::size_t{256} << 20; at += run) {
            std::byte* to = ring.data() + at % (std::size_t{64} << 20);
            if (streaming) {
                copy_streaming(to, memory.data() + at, run);
                streaming_fence();
            } else {
                std::memcpy(to, memory.data() + at, run);
            }
        }
    state.SetBytesProcessed(state.iterations() * (std::int64_t{256} << 20));
}
BENCHMARK_CAPTURE(streaming_threshold, streaming, true)
    ->RangeMultiplier(4)
    ->Range(1 << 10, 1 << 18);
BENCHMARK_CAPTURE(streaming_threshold, memcpy, false)->RangeMultiplier(4)->Range(1 << 10, 1 << 18);

} // namespace
} // namespace safering::plan

BENCHMARK_MAIN();
