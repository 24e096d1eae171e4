// `safering convert SRC DST`: any checkpoint in, final files out, with everything a save promises.

#include <chrono>

#include <fmt/format.h>

#include <safering/checkpoint.hpp>

#include "command.hpp"
#include "progress.hpp"
#include "text.hpp"

namespace safering::tools {

namespace {

struct Arguments {
    std::string source;
    std::string destination;
    std::uint32_t files = 0;
    std::uint64_t max_file_bytes = 0;
};

Json report_to_json(const SaveReport& report, std::chrono::duration<double> time) {
    return {
        {"path", report.path},
        {"attempt", report.attempt},
        {"files", report.files},
        {"tensor_bytes", report.tensor_bytes},
        {"replaced", report.replaced},
        {"seconds", time.count()},
        {"gib_per_second", gib_per_second(report.tensor_bytes, time)},
        {"prepare_seconds", report.prepare_seconds},
        {"commit_seconds", report.commit_seconds},
        {"work", to_json(report.work)},
        {"reactor", to_json(report.reactor)},
        {"file_system", to_json(report.file_system)},
        {"notes", report.notes},
    };
}

void print_text(const SaveReport& report, std::chrono::duration<double> time) {
    fmt::print("{} {}: {} in {} files at {:.2f} GiB/s ({})\n",
               report.replaced ? "replaced" : "wrote", escaped(report.path),
               format_bytes(report.tensor_bytes), report.files,
               gib_per_second(report.tensor_bytes, time), name(report.reactor.backend));
    for (const std::string& note : report.notes)
        fmt::print("note: {}\n", note);
}

ExitCode convert(const Arguments& arguments, const CommonOptions& common) {
    const auto reactor = make_reactor(common.backend);
    const auto begin = std::chrono::steady_clock::now();
    const SaveReport report = [&] {
        Progress progress("convert");
        ConvertOptions options{.files = arguments.files,
                               .max_file_bytes = arguments.max_file_bytes};
        options.progress = progress.callback();
        return value_or_throw(
            convert_checkpoint(arguments.source, arguments.destination, *reactor, options));
    }();
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
    if (common.json)
        print_json(report_to_json(report, time));
    else
        print_text(report, time);
    return exit_good;
}

} // namespace

void add_convert(CLI::App& app, CommonOptions& common, Action& action) {
    auto* command =
        add_command(app, common, "convert", "Rewrite a checkpoint into another number of files",
                    "Also joins the shard-... files of a distributed save into whole tensors. The "
                    "source is only\n"
                    "read; the destination appears whole and durable, or not at all. Where it is "
                    "the source itself,\n"
                    "it is replaced the same way.\n"
                    "Example: safering convert sharded/ final/ --max-file-size 5GB");
    auto arguments = std::make_shared<Arguments>();
    command->add_option("SRC", arguments->source, "A directory or one .safetensors file")
        ->required();
    command->add_option("DST", arguments->destination, "Directory to write; its parent must exist")
        ->required();
    auto* files =
        command->add_option("--files", arguments->files, "So many files of about equal size (1)")
            ->check(CLI::Range(1, 99999))
            ->type_name("N");
    add_bytes_option(*command, "--max-file-size", arguments->max_file_bytes,
                     "As many files as needed, each at most so large: 5GB, 1.5GiB");
    command->get_option("--max-file-size")->excludes(files);
    add_backend_option(*command, common);
    command->callback([&common, &action, arguments] {
        action = [&common, arguments] { return convert(*arguments, common); };
    });
}

} // namespace safering::tools
