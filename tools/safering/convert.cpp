// `safering convert SRC DST`: any checkpoint in, final files out, with everything a save promises.

#include <cctype>
#include <chrono>
#include <optional>
#include <regex>

#include <fmt/format.h>

#include <safering/checkpoint.hpp>

#include "command.hpp"
#include "progress.hpp"
#include "tensor_filter.hpp"
#include "text.hpp"

namespace safering::tools {

namespace {

struct ConvertArguments {
    std::string source;
    std::string destination;
    std::uint32_t files = 0;
    std::uint64_t max_file_bytes = 0;
    std::optional<Dtype> dtype;
    std::vector<std::string> keep_dtype;
    std::vector<Rename> renames;
};

// What the Hugging Face Hub's own clients make files of.
constexpr std::uint64_t default_file_bytes = 5'000'000'000;

// The text of a "s/from/to/" up to the next delimiter, which stands behind a backslash for itself.
std::string next_part(std::string_view text, std::size_t& at) {
    const char delimiter = text[1];
    std::string out;
    for (; at < text.size() && text[at] != delimiter; ++at) {
        if (text[at] == '\\' && at + 1 < text.size() && text[at + 1] == delimiter)
            ++at;
        else if (text[at] == '\\' && at + 1 < text.size())
            out += text[at++];
        out += text[at];
    }
    return out;
}

// "OLD=NEW", or "s/from/to/" with any delimiter that is no letter or digit, and "g" behind it for all.
std::optional<Rename> parse_rename(std::string_view text) {
    const bool is_expression = text.size() > 2 && text[0] == 's' && text[1] != '=' &&
                               text[1] != '.' && text[1] != '_' && text[1] != '\\' &&
                               std::ispunct(static_cast<unsigned char>(text[1]));
    if (is_expression) {
        std::size_t at = 2;
        Rename out{.kind = Rename::Kind::regex_once, .from = next_part(text, at), .to = {}};
        if (at++ == text.size())
            return std::nullopt;
        out.to = next_part(text, at);
        if (at == text.size() || out.from.empty())
            return std::nullopt;
        const std::string_view flags = text.substr(at + 1);
        if (flags == "g")
            out.kind = Rename::Kind::regex_all;
        else if (!flags.empty())
            return std::nullopt;
        return out;
    }
    const std::size_t sign = text.find('=');
    if (sign == std::string_view::npos || sign == 0)
        return std::nullopt;
    return Rename{.from = std::string(text.substr(0, sign)),
                  .to = std::string(text.substr(sign + 1))};
}

void check_regex(const std::string& text) {
    try {
        static_cast<void>(std::regex(text));
    } catch (const std::regex_error& error) {
        throw CLI::ValidationError("--rename", fmt::format("\"{}\" is no regular expression: {}",
                                                           escaped(text), error.what()));
    }
}

void add_change_options(CLI::App& command, ConvertArguments& arguments) {
    command
        .add_option(
            "--dtype",
            [&arguments](const CLI::results_t& values) {
                const Dtype dtype = dtype_argument("--dtype", values.front());
                if (dtype != Dtype::f16 && dtype != Dtype::bf16 && dtype != Dtype::f32 &&
                    dtype != Dtype::f64)
                    throw CLI::ValidationError(
                        "--dtype",
                        fmt::format("nothing is converted to {}, only to BF16, F16, F32 or F64",
                                    name(dtype)));
                arguments.dtype = dtype;
                return true;
            },
            "What BF16, F16, F32 and F64 tensors become; all others stay as they are")
        ->type_name("DTYPE");
    command
        .add_option("--keep-dtype", arguments.keep_dtype,
                    "Tensors that stay as they are all the same: '*norm*'")
        ->type_name("GLOB")
        ->allow_extra_args(false)
        ->needs("--dtype");
    command
        .add_option(
            "--rename",
            [&arguments](const CLI::results_t& values) {
                for (const std::string& value : values) {
                    std::optional<Rename> rename = parse_rename(value);
                    if (!rename)
                        throw CLI::ValidationError(
                            "--rename", fmt::format("\"{}\" is neither OLD=NEW nor s/regex/text/",
                                                    escaped(value)));
                    if (rename->kind != Rename::Kind::prefix)
                        check_regex(rename->from);
                    arguments.renames.push_back(std::move(*rename));
                }
                return true;
            },
            "New names: OLD=NEW for their beginning, s/regex/text/ anywhere; one after the other")
        ->type_name("RULE")
        ->expected(1, CLI::detail::expected_max_vector_size)
        ->allow_extra_args(false);
}

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
    fmt::print("{} {}: {} in {} at {:.2f} GiB/s ({})\n", report.replaced ? "replaced" : "wrote",
               escaped(report.path), format_bytes(report.tensor_bytes),
               counted(report.files, "file"), gib_per_second(report.tensor_bytes, time),
               name(report.reactor.backend));
    for (const std::string& note : report.notes)
        fmt::print("note: {}\n", note);
}

ExitCode convert(const ConvertArguments& arguments, const CommonOptions& common) {
    const auto reactor = make_reactor(common.backend, arguments.destination);
    const auto begin = std::chrono::steady_clock::now();
    const SaveReport report = [&] {
        Progress progress("convert");
        ConvertOptions options{.files = arguments.files,
                               .max_file_bytes = arguments.max_file_bytes,
                               .dtype = arguments.dtype,
                               .keep_dtype = arguments.keep_dtype,
                               .renames = arguments.renames};
        if (options.files == 0 && options.max_file_bytes == 0)
            options.max_file_bytes = default_file_bytes;
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
    auto* command = add_command(
        app, common, "convert", "Rewrite a checkpoint: other files, dtypes or names",
        "Also joins the shard-... files of a distributed save into whole tensors. The "
        "source is only\n"
        "read; the destination appears whole and durable, or not at all. Where it is "
        "the source itself,\n"
        "it is replaced the same way. What is written can go to the Hugging Face Hub as it "
        "is. Numbers\nare rounded to the nearest, ties to even; those too large for a "
        "dtype become infinite, and are\ncounted in a note.\n"
        "Example: safering convert sharded/ final/ --max-file-size 5GB\n"
        "Example: safering convert f32/ bf16/ --dtype BF16 --keep-dtype '*norm*'\n"
        "Example: safering convert a/ b/ --rename _orig_mod.= --rename "
        "'s/layers\\.([0-9]+)/blocks.$1/'");
    auto arguments = std::make_shared<ConvertArguments>();
    add_path(*command, "SRC", arguments->source, "A directory or one .safetensors file");
    add_path(*command, "DST", arguments->destination, "Directory to write; its parent must exist");
    auto* files =
        command->add_option("--files", arguments->files, "So many files of about equal size")
            ->check(CLI::Range(1, 99999))
            ->type_name("N");
    add_bytes_option(*command, "--max-file-size", arguments->max_file_bytes,
                     "As many files as needed, each at most so large (5GB)");
    command->get_option("--max-file-size")->excludes(files);
    add_change_options(*command, *arguments);
    add_backend_option(*command, common);
    command->callback([&common, &action, arguments] {
        action = [&common, arguments] { return convert(*arguments, common); };
    });
}

} // namespace safering::tools
