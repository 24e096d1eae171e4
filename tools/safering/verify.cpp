// `safering verify PATH`: whether a checkpoint is whole and unchanged, as far as it can be told.

#include <chrono>

#include <fmt/format.h>

#include <safering/checkpoint.hpp>

#include "command.hpp"
#include "progress.hpp"
#include "text.hpp"

namespace safering::tools {

namespace {

Json report_to_json(const std::string& path, const VerifyReport& report,
                    std::chrono::duration<double> time) {
    Json findings = Json::array();
    for (const Error& finding : report.findings)
        findings.push_back(to_json(finding));
    return {
        {"path", path},
        {"good", report.findings.empty()},
        {"source", name(report.source)},
        {"files", report.files},
        {"read_bytes", report.read_bytes},
        {"verified_bytes", report.verified_bytes},
        {"seconds", time.count()},
        {"gib_per_second", gib_per_second(report.read_bytes, time)},
        {"work", to_json(report.work)},
        {"findings", std::move(findings)},
        {"unchecked", report.unchecked},
    };
}

void print_text(const VerifyReport& report, std::chrono::duration<double> time) {
    fmt::print("found by   {}\n", name(report.source));
    fmt::print("read       {} in {} at {:.2f} GiB/s\n", format_bytes(report.read_bytes),
               counted(report.files, "file"), gib_per_second(report.read_bytes, time));
    fmt::print("verified   {} by digest\n", format_bytes(report.verified_bytes));
    for (const std::string& reason : report.unchecked)
        fmt::print("unchecked  {}\n", reason);
    for (const Error& finding : report.findings)
        fmt::print("finding    {}\n", finding.message());
    if (report.findings.empty())
        fmt::print("good\n");
}

ExitCode verify(const std::string& path, bool strict, const CommonOptions& common) {
    const auto reactor = make_reactor(common.backend, path);
    const auto begin = std::chrono::steady_clock::now();
    const VerifyReport report = [&] {
        Progress progress("verify");
        const VerifyOptions options{.strict = strict, .progress = progress.callback()};
        return value_or_throw(verify_checkpoint(path, *reactor, options));
    }();
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
    if (common.json)
        print_json(report_to_json(path, report, time));
    else
        print_text(report, time);
    if (report.findings.empty())
        return exit_good;
    fmt::print(stderr, "safering: {} is damaged, findings: {}\n", escaped(path),
               report.findings.size());
    return exit_failure;
}

} // namespace

void add_verify(CLI::App& app, CommonOptions& common, Action& action) {
    auto* command =
        add_command(app, common, "verify", "Check sizes, coverage and every digest of a checkpoint",
                    "What has no digest is listed as unchecked and is no finding.\n"
                    "Example: safering verify /checkpoints/step-1000");
    struct Arguments {
        std::string path;
        bool strict = false;
    };
    auto arguments = std::make_shared<Arguments>();
    add_path(*command, "PATH", arguments->path, "A directory or one .safetensors file");
    command->add_flag("--strict", arguments->strict, "Refuse symbolic links under the file names");
    add_backend_option(*command, common);
    command->callback([&common, &action, arguments] {
        action = [&common, arguments] {
            return verify(arguments->path, arguments->strict, common);
        };
    });
}

} // namespace safering::tools
