// `safering probe [DIR]`: what this machine and this file system let a save do, and with --measure how it wants it.

#include <fmt/format.h>

#include <safering/tuning.hpp>

#include "advice.hpp"
#include "command.hpp"
#include "table.hpp"
#include "text.hpp"

namespace safering::tools {

namespace {

struct ProbeArguments {
    std::string directory = ".";
    bool measure = false;
    MeasureOptions options{};
};

Machine probe(const std::string& directory, BackendChoice backend) {
    const auto reactor = make_reactor(backend, directory);
    Machine machine{.reactor = reactor->info(),
                    .backend_was_chosen = backend != BackendChoice::automatic,
                    .file_system = value_or_throw(reactor->file_system(directory)),
                    .huge_pages = probe_huge_pages(),
                    .io_uring_disabled = {},
                    .memlock_bytes = {}};
    read_limits(machine);
    return machine;
}

std::uint64_t memory_of(const TuningRow& row) {
    const ReactorOptions options = options_of(row);
    return std::uint64_t{options.buffer_count} * options.buffer_bytes;
}

double in_gib(double rate) {
    return rate / (std::uint64_t{1} << 30);
}

void print_tuning(const FoundTuning& found, const ReactorInfo& reactor) {
    if (!found.tuning) {
        fmt::print("tuning       defaults, {} of buffers; {}\n",
                   format_bytes(std::uint64_t{reactor.buffer_count} * reactor.buffer_bytes),
                   found.reason);
        return;
    }
    const Tuning& tuning = *found.tuning;
    fmt::print("tuning       measured {} on {}, in a file of {}\n", tuning.measured,
               tuning.file_system, format_bytes(tuning.file_bytes));
    Table table({{.heading = ""},
                 {.heading = "request", .align = Table::Align::right},
                 {.heading = "in flight", .align = Table::Align::right},
                 {.heading = "threads", .align = Table::Align::right},
                 {.heading = "buffers", .align = Table::Align::right},
                 {.heading = "write GiB/s", .align = Table::Align::right},
                 {.heading = "read GiB/s", .align = Table::Align::right}});
    for (std::size_t i = 0; i < tuning.rows.size(); ++i) {
        const TuningRow& row = tuning.rows[i];
        table.add({i == tuning.chosen ? "      chosen" : "            ",
                   format_bytes(row.block_bytes), std::to_string(row.in_flight),
                   std::to_string(row.threads), format_bytes(memory_of(row)),
                   fmt::format("{:.2f}", in_gib(row.write_rate)),
                   fmt::format("{:.2f}", in_gib(row.read_rate))});
    }
    fmt::print("{}", table.text(standard_output()));
}

Json tuning_to_json(const FoundTuning& found) {
    if (!found.tuning)
        return {{"file_system", found.file_system}, {"reason", found.reason}};
    const Tuning& tuning = *found.tuning;
    Json rows = Json::array();
    for (const TuningRow& row : tuning.rows)
        rows.push_back({{"block_bytes", row.block_bytes},
                        {"in_flight", row.in_flight},
                        {"threads", row.threads},
                        {"buffer_memory", memory_of(row)},
                        {"write_gib_per_second", in_gib(row.write_rate)},
                        {"read_gib_per_second", in_gib(row.read_rate)}});
    return {{"file_system", tuning.file_system}, {"backend", name(tuning.backend)},
            {"measured", tuning.measured},       {"file_bytes", tuning.file_bytes},
            {"chosen", tuning.chosen},           {"rows", std::move(rows)}};
}

void print_text(const std::string& directory, const Machine& report, const FoundTuning& found) {
    const FileSystemInfo& fs = report.file_system;
    fmt::print("backend      {}: {}\n", name(report.reactor.backend), report.reactor.reason);
    fmt::print("directory    {}\n", escaped(directory));
    fmt::print("file system  {}\n", fs.type);
    fmt::print("O_DIRECT     {}\n", fs.direct
                                        ? fmt::format("yes, memory aligned to {}, offsets to {}",
                                                      fs.memory_alignment, fs.offset_alignment)
                                        : "refused; saves and loads go through the page cache");
    fmt::print("fallocate    {}\n",
               fs.allocate ? "yes" : "refused; a full disk shows only while writing");
    fmt::print("huge pages   {}\n", report.huge_pages.words());
    fmt::print("limits       locked memory {}, open files {}\n",
               report.memlock_bytes ? format_bytes(*report.memlock_bytes) : "unlimited",
               report.open_files);
    print_tuning(found, report.reactor);
    if (!found.tuning && fs.direct)
        fmt::print("             to measure it, some seconds: safering probe {} --measure\n",
                   escaped(directory));
    const std::vector<std::string> advice = advise(report);
    for (const std::string& line : advice)
        fmt::print("advice       {}\n", line);
    if (advice.empty())
        fmt::print("advice       none: nothing here slows saves and loads down\n");
}

ExitCode run(const ProbeArguments& arguments, const CommonOptions& common) {
    std::optional<Tuning> measured;
    std::optional<Error> not_kept;
    if (arguments.measure) {
        measured = value_or_throw(measure_tuning(arguments.directory, arguments.options));
        if (const auto stored = store_tuning(*measured); !stored)
            not_kept = stored.error();
    }
    const Machine report = probe(arguments.directory, common.backend);
    FoundTuning found = find_tuning(arguments.directory, report.reactor.backend);
    if (measured) // what was kept, or could not be
        found = {.tuning = std::move(measured)};
    if (common.json)
        print_json({
            {"directory", arguments.directory},
            {"reactor", to_json(report.reactor)},
            {"file_system", to_json(report.file_system)},
            {"huge_pages", to_json(report.huge_pages)},
            {"memlock_bytes", report.memlock_bytes ? Json(*report.memlock_bytes) : Json()},
            {"open_files", report.open_files},
            {"tuning", tuning_to_json(found)},
            {"advice", advise(report)},
        });
    else
        print_text(arguments.directory, report, found);
    if (!not_kept)
        return exit_good;
    fmt::print(stderr, "safering: {}\n", not_kept->message());
    return exit_failure;
}

} // namespace

void add_probe(CLI::App& app, CommonOptions& common, Action& action) {
    auto* command = add_command(app, common, "probe",
                                "Tell which backend and file system features are available",
                                "--measure keeps its choice in $XDG_CACHE_HOME/safering "
                                "(~/.cache/safering). Saves and loads there take\n"
                                "it where they are given nothing else; SAFERING_TUNING=off in the "
                                "environment makes them not.\n"
                                "Example: safering probe /checkpoints");
    auto arguments = std::make_shared<ProbeArguments>();
    add_path(*command, "DIR", arguments->directory,
             "Directory that checkpoints would be saved in (.)")
        ->required(false);
    auto* measure = command->add_flag("--measure", arguments->measure,
                                      "Find out with a scratch file how large requests are best "
                                      "here and how many in flight, and keep that");
    add_bytes_option(
        *command, "--size", arguments->options.file_bytes,
        "Size of the scratch file; more than a server's memory to see its disks (256MiB)")
        ->needs(measure);
    add_backend_option(*command, common);
    command->callback([&common, &action, arguments] {
        if (arguments->options.file_bytes < MeasureOptions::least_file_bytes)
            throw CLI::ValidationError("--size", "32MiB or more is needed");
        arguments->options.backend = common.backend;
        action = [&common, arguments] { return run(*arguments, common); };
    });
}

} // namespace safering::tools
