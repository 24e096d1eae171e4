// `safering bench DIR`: durable saves and cold loads of a made-up Llama.
//
// Every run saves, drops the page cache, and loads; the first run is dropped, because it pays for
// first touches of memory and disk. Ranks are threads with a reactor each; their memory is there
// and touched before the clock starts, as a trainer's is.

#include <algorithm>
#include <bit>
#include <csignal>
#include <filesystem>

#include <fmt/format.h>
#include <unistd.h>

#include "bench_ranks.hpp"
#include "command.hpp"
#include "measure.hpp"
#include "progress.hpp"
#include "text.hpp"

namespace safering::tools {

namespace {

struct BenchArguments {
    std::string directory;
    unsigned ranks = 1;
    unsigned shard_dimension = 0;
    std::uint64_t model_bytes = std::uint64_t{1} << 30;
    /// Both 0: a made-up Llama. Either: equal tensors.
    std::uint64_t tensor_bytes = 0;
    std::uint64_t row_bytes = 0;
    std::uint64_t block_bytes = ReactorOptions{}.buffer_bytes;
    std::uint64_t transfer_bytes = 0;
    unsigned depth = ReactorOptions{}.buffer_count;
    unsigned repeat = 5;
};

struct BenchReport {
    std::size_t tensors = 0;
    SaveReport save;
    RanksLoad load;
    std::vector<Cost> saves;
    std::vector<Cost> loads;
};

volatile std::sig_atomic_t interrupted = 0;

// The first signal ends the benchmark between two parts, so that its files are
// removed; the second kills.
void clean_up_on_signals() {
    struct sigaction action{};
    action.sa_handler = [](int) { interrupted = 1; };
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
}

// A directory of our own beside whatever is in DIR, gone with everything in it at the end.
class ScratchDirectory {
  public:
    explicit ScratchDirectory(const std::filesystem::path& parent)
        : path_(parent / fmt::format(".safering-bench-{}", getpid())) {
        std::error_code error;
        if (!std::filesystem::create_directory(path_, error))
            throw Exception({.code = error ? error : make_error_code(std::errc::file_exists),
                             .operation = "create directory",
                             .file = path_});
    }
    ~ScratchDirectory() {
        std::error_code error;
        std::filesystem::remove_all(path_, error);
        if (error)
            fmt::print(stderr, "safering: {} could not be removed: {}\n", escaped(path_.string()),
                       error.message());
    }
    ScratchDirectory(const ScratchDirectory&) = delete;
    ScratchDirectory& operator=(const ScratchDirectory&) = delete;

    std::string checkpoint() const { return path_ / "step"; }

  private:
    std::filesystem::path path_;
};

// Saving into an empty place each time, as a trainer does; removal is not what is measured.
void remove_checkpoint(const std::string& path) {
    std::error_code error;
    std::filesystem::remove_all(path, error);
    if (error)
        throw Exception({.code = error, .operation = "remove", .file = path});
}

void run_once(Ranks& ranks, const std::string& path, std::uint64_t baseline, BenchReport& report) {
    remove_checkpoint(path);
    const Measurement save_cost(baseline);
    report.save = ranks.save(path);
    report.saves.push_back(save_cost.stop());

    drop_from_cache(path);
    const Measurement load_cost(baseline);
    report.load = ranks.load(path);
    report.loads.push_back(load_cost.stop());
}

// What is saved and what is loaded; replicas of small tensors do not count.
void check_memory(std::uint64_t model_bytes) {
    const std::uint64_t available = available_bytes();
    if (available != 0 && model_bytes > available / 2) // 0: without /proc nobody knows
        throw Exception(
            {.code = make_error_code(std::errc::not_enough_memory),
             .operation = "make up a model",
             .detail = fmt::format("the model and the copy that is loaded need {} each, "
                                   "available are {}; choose a smaller --size",
                                   format_bytes(model_bytes), format_bytes(available))});
}

std::vector<ModelTensor> make_model(const BenchArguments& arguments) {
    constexpr std::uint64_t usual_tensor_bytes = std::uint64_t{64} << 20;
    constexpr std::uint64_t usual_row_bytes = 128;
    if (arguments.tensor_bytes == 0 && arguments.row_bytes == 0)
        return made_up_llama(arguments.model_bytes);
    return equal_tensors(arguments.model_bytes,
                         arguments.tensor_bytes == 0
                             ? std::min(usual_tensor_bytes, arguments.model_bytes)
                             : arguments.tensor_bytes,
                         arguments.row_bytes == 0 ? usual_row_bytes : arguments.row_bytes);
}

BenchReport bench(const BenchArguments& arguments, BackendChoice backend) {
    check_memory(arguments.model_bytes);
    const ScratchDirectory scratch(arguments.directory);
    clean_up_on_signals();

    const std::vector<ModelTensor> model = make_model(arguments);
    Ranks ranks(model, arguments.ranks, arguments.shard_dimension);
    const std::uint64_t baseline = resident_bytes();
    ranks.start({.backend = backend,
                 .buffer_bytes = arguments.block_bytes,
                 .buffer_count = arguments.depth,
                 .transfer_bytes = arguments.transfer_bytes});

    Progress progress("bench");
    const auto show = progress.callback();
    BenchReport report;
    report.tensors = model.size();
    for (unsigned run = 0; run <= arguments.repeat; ++run) {
        if (show)
            show(run * ranks.held_bytes(), (arguments.repeat + 1) * ranks.held_bytes());
        if (interrupted)
            throw Exception({.code = make_error_code(std::errc::operation_canceled),
                             .operation = "bench",
                             .detail = "by a signal; what was written is removed"});
        run_once(ranks, scratch.checkpoint(), baseline, report);
        if (run == 0) {
            ranks.compare();
            report.saves.clear();
            report.loads.clear();
        }
    }
    return report;
}

Json cost_to_json(const Cost& cost, std::uint64_t bytes) {
    return {
        {"seconds", cost.seconds},
        {"gib_per_second", gib_per_second(bytes, std::chrono::duration<double>(cost.seconds))},
        {"cpu_seconds", cost.cpu_seconds},
        {"extra_bytes", cost.extra_bytes ? Json(*cost.extra_bytes) : Json()},
    };
}

template <typename Report>
Json exchange_to_json(const Report& report) {
    return {{"process_memory_bytes", report.process_memory_bytes},
            {"shared_memory_bytes", report.shared_memory_bytes}};
}

// What ranks took from each other.
template <typename Report>
void print_exchange(const char* what, const Report& report) {
    if (report.process_memory_bytes + report.shared_memory_bytes != 0)
        fmt::print("exchange {}: {} by process memory, {} by shared memory\n", what,
                   format_bytes(report.process_memory_bytes),
                   format_bytes(report.shared_memory_bytes));
}

Json ranks_to_json(const std::vector<RankReport>& ranks) {
    Json json = Json::array();
    for (const RankReport& rank : ranks)
        json.push_back({{"rank", rank.rank},
                        {"work", to_json(rank.work)},
                        {"backend", name(rank.backend)},
                        {"reason", rank.reason}});
    return json;
}

Json costs_to_json(const std::vector<Cost>& costs, std::uint64_t bytes) {
    Json json = cost_to_json(median(costs), bytes);
    json["bytes"] = bytes;
    for (const Cost& cost : costs)
        json["runs"].push_back(cost_to_json(cost, bytes));
    return json;
}

void print_row(const char* what, const Cost& cost, std::uint64_t bytes) {
    fmt::print("{:<14}{:>9.2f}{:>10.3f}{:>9.2f}  {}\n", what,
               gib_per_second(bytes, std::chrono::duration<double>(cost.seconds)), cost.seconds,
               cost.cpu_seconds, cost.extra_bytes ? format_bytes(*cost.extra_bytes) : "unknown");
}

void print_text(const BenchArguments& arguments, const BenchReport& report) {
    const SaveReport& save = report.save;
    fmt::print("model    {} in {} bf16 tensors, {}, sharded along dimension {}\n",
               format_bytes(save.tensor_bytes), report.tensors, counted(arguments.ranks, "rank"),
               arguments.shard_dimension);
    fmt::print("backend  {}: {}\n", name(save.reactor.backend), save.reactor.reason);
    fmt::print("disk     {}, O_DIRECT {}\n", save.file_system.type,
               save.file_system.direct ? "yes" : "refused");
    for (const std::string& note : save.notes)
        fmt::print("note     {}\n", note);
    print_exchange("save", save);
    print_exchange("load", report.load.exchange);
    fmt::print("\nmedians of {} runs; what was loaded equals what was saved\n", arguments.repeat);
    fmt::print("{:<14}{:>9}{:>10}{:>9}  {}\n", "", "GiB/s", "seconds", "CPU-s", "extra memory");
    print_row("save, durable", median(report.saves), save.tensor_bytes);
    print_row("load, cold", median(report.loads), report.load.tensor_bytes);
    fmt::print("\nthe last save: prepare {:.3f} s, commit {:.3f} s; {}", save.prepare_seconds,
               save.commit_seconds, to_text(summarise(save.ranks)));
    fmt::print("\nthe last load: {}", to_text(summarise(report.load.ranks)));
}

Json report_to_json(const BenchArguments& arguments, const BenchReport& report) {
    Json json{
        {"ranks", arguments.ranks},
        {"shard_dim", arguments.shard_dimension},
        {"tensors", report.tensors},
        {"repeat", arguments.repeat},
        {"reactor", to_json(report.save.reactor)},
        {"file_system", to_json(report.save.file_system)},
        {"notes", report.save.notes},
        {"save", costs_to_json(report.saves, report.save.tensor_bytes)},
        {"load", costs_to_json(report.loads, report.load.tensor_bytes)},
    };
    json["save"]["exchange"] = exchange_to_json(report.save);
    json["load"]["exchange"] = exchange_to_json(report.load.exchange);
    json["load"]["read_bytes"] = report.load.read_bytes;
    // Of the last time: all ranks together, and each.
    json["save"]["prepare_seconds"] = report.save.prepare_seconds;
    json["save"]["commit_seconds"] = report.save.commit_seconds;
    json["save"]["work"] = to_json(summarise(report.save.ranks).total);
    json["load"]["work"] = to_json(summarise(report.load.ranks).total);
    json["save"]["ranks"] = ranks_to_json(report.save.ranks);
    json["load"]["ranks"] = ranks_to_json(report.load.ranks);
    return json;
}

} // namespace

void add_bench(CLI::App& app, CommonOptions& common, Action& action) {
    auto* command = add_command(
        app, common, "bench", "Measure durable saves and cold loads of a made-up model",
        "Needs twice the model's size in memory and once on the disk; removes what it wrote.\n"
        "Example: safering bench /checkpoints --ranks 4 --size 4GiB");
    auto arguments = std::make_shared<BenchArguments>();
    add_path(*command, "DIR", arguments->directory, "An existing directory on the disk to measure");
    command->add_option("--ranks", arguments->ranks, "Threads that save and load together (1)")
        ->check(CLI::Range(1, 256))
        ->type_name("N");
    command
        ->add_option("--shard-dim", arguments->shard_dimension,
                     "Dimension that tensors are cut along; those without it are replicated (0)")
        ->check(CLI::Range(0, 1))
        ->type_name("D");
    add_bytes_option(*command, "--size", arguments->model_bytes, "Size of the model (1GiB)");
    add_bytes_option(*command, "--tensor-size", arguments->tensor_bytes,
                     "Equal tensors of this size instead of a made-up Llama");
    add_bytes_option(*command, "--row", arguments->row_bytes,
                     "Equal tensors with rows of this size, which --shard-dim 1 cuts (128B)");
    add_bytes_option(
        *command, "--block", arguments->block_bytes,
        "Size of a buffer, and of a request where --request is none, at most 4MiB (4MiB)");
    add_bytes_option(*command, "--request", arguments->transfer_bytes,
                     "Size of a request: a buffer goes in several");
    command
        ->add_option("--depth", arguments->depth,
                     fmt::format("Buffers of each rank: requests in flight that copy ({})",
                                 ReactorOptions{}.buffer_count))
        ->check(CLI::Range(1, 64))
        ->type_name("N");
    command
        ->add_option("--repeat", arguments->repeat, "Runs that count, after one that does not (5)")
        ->check(CLI::Range(1, 1000))
        ->type_name("N");
    add_backend_option(*command, common);
    command->callback([&common, &action, arguments] {
        // A larger buffer would hold no larger request: a file's cells, which digests are made of, end there.
        if (!std::has_single_bit(arguments->block_bytes) || arguments->block_bytes < 4096 ||
            arguments->block_bytes > ReactorOptions{}.buffer_bytes)
            throw CLI::ValidationError("--block", "a power of two from 4KiB to 4MiB is needed");
        if (arguments->transfer_bytes % 4096 != 0)
            throw CLI::ValidationError("--request", "a multiple of 4KiB is needed");
        action = [&common, arguments] {
            const BenchReport report = bench(*arguments, common.backend);
            if (common.json)
                print_json(report_to_json(*arguments, report));
            else
                print_text(*arguments, report);
            return exit_good;
        };
    });
}

} // namespace safering::tools
