// `safering diff A B`: what two checkpoints hold differently.

#include <fmt/format.h>

#include <safering/checkpoint.hpp>

#include "command.hpp"
#include "progress.hpp"
#include "text.hpp"

namespace safering::tools {

namespace {

struct DiffArguments {
    std::string first;
    std::string second;
    bool no_values = false;
    bool read_all = false;
};

std::string_view kind_words(TensorDifference::Kind kind) {
    switch (kind) {
    case TensorDifference::Kind::only_in_first: return "only in A";
    case TensorDifference::Kind::only_in_second: return "only in B";
    case TensorDifference::Kind::dtype: return "dtype";
    case TensorDifference::Kind::shape: return "shape";
    case TensorDifference::Kind::values: return "values";
    }
    return "unknown";
}

Json report_to_json(const DiffArguments& arguments, const CompareReport& report) {
    Json differences = Json::array();
    for (const TensorDifference& difference : report.differences)
        differences.push_back({{"tensor", difference.fqn},
                               {"kind", kind_words(difference.kind)},
                               {"detail", difference.detail}});
    return {
        {"a", arguments.first},
        {"b", arguments.second},
        {"equal", report.differences.empty()},
        {"tensors", report.tensors},
        {"digest_bytes", report.digest_bytes},
        {"read_bytes", report.read_bytes},
        {"differences", std::move(differences)},
    };
}

void print_text(const DiffArguments& arguments, const CompareReport& report) {
    for (const TensorDifference& difference : report.differences)
        fmt::print("{:<10} {}{}{}\n", kind_words(difference.kind), escaped(difference.fqn),
                   difference.detail.empty() ? "" : ": ", difference.detail);
    if (report.differences.empty())
        fmt::print("the same {}{}: {} by digest, {} read\n", counted(report.tensors, "tensor"),
                   arguments.no_values ? ", values not compared" : "",
                   format_bytes(report.digest_bytes), format_bytes(report.read_bytes));
    if (report.differences.empty() && report.digest_bytes != 0)
        fmt::print("what was saved was the same; whether the disk still has it tells verify, or "
                   "--read-all\n");
}

ExitCode diff(const DiffArguments& arguments, const CommonOptions& common) {
    const auto reactor = make_reactor(common.backend, arguments.first);
    const CompareReport report = [&] {
        Progress progress("diff");
        CompareOptions options{.values = !arguments.no_values, .read_all = arguments.read_all};
        options.progress = progress.callback();
        return value_or_throw(
            compare_checkpoints(arguments.first, arguments.second, *reactor, options));
    }();
    if (common.json)
        print_json(report_to_json(arguments, report));
    else
        print_text(arguments, report);
    return report.differences.empty() ? exit_good : exit_failure;
}

} // namespace

void add_diff(CLI::App& app, CommonOptions& common, Action& action) {
    auto* command = add_command(
        app, common, "diff", "Compare two checkpoints: names, dtypes, shapes, values",
        "Files and sharding do not matter. Tensors whose digests in both manifests are the same "
        "are "
        "not read.\nSilent about what is equal; exit code 1 where anything differs, like "
        "diff(1).\n"
        "Example: safering diff /checkpoints/step-1000 converted/\n"
        "Example: safering diff --no-values old.safetensors new.safetensors");
    auto arguments = std::make_shared<DiffArguments>();
    add_path(*command, "A", arguments->first, "A directory or one .safetensors file");
    add_path(*command, "B", arguments->second, "The other one");
    auto* names = command->add_flag("--no-values", arguments->no_values,
                                    "Only names, dtypes and shapes; reads no tensor");
    command->add_flag("--read-all", arguments->read_all, "Compare bytes, whatever the digests say")
        ->excludes(names);
    add_backend_option(*command, common);
    command->callback([&common, &action, arguments] {
        action = [&common, arguments] { return diff(*arguments, common); };
    });
}

} // namespace safering::tools
