// What the subcommands of `safering` share: how they are registered, how they
// report, and exit codes.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <safering/error.hpp>
#include <safering/reactor.hpp>
#include <safering/work_report.hpp>

namespace safering::tools {

enum ExitCode : int {
    exit_good = 0,
    /// A finding, or an operation that failed.
    exit_failure = 1,
    exit_wrong_use = 2,
};

inline constexpr std::array<std::string_view, 3> backend_names{"auto", "io_uring", "threads"};
inline constexpr std::array<std::string_view, 3> shell_names{"bash", "zsh", "fish"};

/// Options of every subcommand.
struct CommonOptions {
    bool json = false;
    BackendChoice backend = BackendChoice::automatic;
};

/// Keeps the order in which fields are written.
using Json = nlohmann::ordered_json;

/// What the chosen subcommand does once all arguments are known to be right. It throws Exception
/// for what went wrong instead of printing it, so that every error looks alike.
using Action = std::function<ExitCode()>;

/// Each adds its subcommand to `app`; choosing it sets `action`.
void add_probe(CLI::App& app, CommonOptions& common, Action& action);
void add_inspect(CLI::App& app, CommonOptions& common, Action& action);
void add_verify(CLI::App& app, CommonOptions& common, Action& action);
void add_completion(CLI::App& app, CommonOptions& common, Action& action);
void add_man(CLI::App& app, CommonOptions& common, Action& action);
void add_diff(CLI::App& app, CommonOptions& common, Action& action);
void add_list(CLI::App& app, CommonOptions& common, Action& action);
void add_prune(CLI::App& app, CommonOptions& common, Action& action);
void add_recover(CLI::App& app, CommonOptions& common, Action& action);
void add_convert(CLI::App& app, CommonOptions& common, Action& action);
void add_bench(CLI::App& app, CommonOptions& common, Action& action);

/// A subcommand with `--json`, the description and an example.
CLI::App* add_command(CLI::App& app, CommonOptions& common, const std::string& name,
                      const std::string& description, const std::string& footer);
void add_backend_option(CLI::App& command, CommonOptions& common);
/// A positional that must be given and must not be empty.
CLI::Option* add_path(CLI::App& command, const std::string& name, std::string& path,
                      const std::string& description);
/// An option that takes "5GB", "1.5GiB", "4096".
CLI::Option* add_bytes_option(CLI::App& command, const std::string& name, std::uint64_t& bytes,
                              const std::string& description);

/// With a path as readers and writers of it would make one, else with the defaults. Throws Exception.
std::shared_ptr<Reactor> make_reactor(BackendChoice backend, const std::string& path = {});

/// One document on standard output.
void print_json(const Json& json);
Json to_json(const Error& error);
Json to_json(const ReactorInfo& info);
Json to_json(const FileSystemInfo& info);
Json to_json(const WorkReport& work);
/// The error as one line on standard error, with `json` also as {"error": ...} on standard output.
ExitCode report_error(const Error& error, bool json);

} // namespace safering::tools
