#include "command.hpp"

#include <cstdio>
#include <map>

#include <fmt/format.h>

#include <safering/tuning.hpp>

#include "text.hpp"

namespace safering::tools {

CLI::App* add_command(CLI::App& app, CommonOptions& common, const std::string& name,
                      const std::string& description, const std::string& footer) {
    CLI::App* command = app.add_subcommand(name, description);
    command->footer(footer);
    command->add_flag("--json", common.json, "Print one JSON document instead of text");
    return command;
}

void add_backend_option(CLI::App& command, CommonOptions& common) {
    static const std::map<std::string, BackendChoice> choices{
        {"auto", BackendChoice::automatic},
        {"io_uring", BackendChoice::io_uring},
        {"threads", BackendChoice::threads},
    };
    command
        .add_option(
            "--backend",
            [&common](const CLI::results_t& values) {
                const auto choice = choices.find(values.front());
                if (choice == choices.end())
                    throw CLI::ValidationError(
                        "--backend", fmt::format("\"{}\" is not auto, io_uring or threads",
                                                 escaped(values.front())));
                common.backend = choice->second;
                return true;
            },
            "auto (io_uring where the kernel grants it), io_uring, or threads")
        ->type_name("BACKEND");
}

CLI::Option* add_path(CLI::App& command, const std::string& name, std::string& path,
                      const std::string& description) {
    return command.add_option(name, path, description)
        ->type_name("PATH")
        ->check([](const std::string& text) {
            return text.empty() ? "the path is empty, as an unset variable of a shell is" : "";
        })
        ->required();
}

CLI::Option* add_bytes_option(CLI::App& command, const std::string& name, std::uint64_t& bytes,
                              const std::string& description) {
    return command
        .add_option(
            name,
            [&bytes, name](const CLI::results_t& values) {
                const std::optional<std::uint64_t> parsed = parse_bytes(values.front());
                if (!parsed || *parsed == 0)
                    throw CLI::ValidationError(
                        name, fmt::format("\"{}\" is not a size like 5GB, 1.5GiB or 4096",
                                          escaped(values.front())));
                bytes = *parsed;
                return true;
            },
            description)
        ->type_name("SIZE");
}

std::shared_ptr<Reactor> make_reactor(BackendChoice backend, const std::string& path) {
    return value_or_throw(path.empty() ? Reactor::create({.backend = backend})
                                       : create_tuned_reactor(path, backend));
}

void print_json(const Json& json) {
    // Paths need not be UTF-8; a report that cannot be printed would be worse than a replaced byte.
    const std::string text = json.dump(2, ' ', false, Json::error_handler_t::replace);
    fmt::print("{}\n", text);
}

Json to_json(const Error& error) {
    Json json{
        {"message", error.message()},
        {"code", error.code.value()},
        {"category", error.code.category().name()},
        {"operation", error.operation},
        {"file", error.file},
        {"tensor", error.tensor},
    };
    if (error.length != 0)
        json["bytes"] = {error.offset, error.offset + error.length};
    return json;
}

Json to_json(const ReactorInfo& info) {
    return {
        {"backend", name(info.backend)},     {"reason", info.reason},
        {"queue_depth", info.queue_depth},   {"buffer_bytes", info.buffer_bytes},
        {"buffer_count", info.buffer_count}, {"transfer_bytes", info.transfer_bytes},
        {"huge_pages", info.huge_pages},     {"origin", info.origin},
    };
}

Json to_json(const FileSystemInfo& info) {
    return {
        {"type", info.type},
        {"direct", info.direct},
        {"allocate", info.allocate},
        {"memory_alignment", info.memory_alignment},
        {"offset_alignment", info.offset_alignment},
    };
}

Json to_json(const WorkReport& work) {
    Json json;
    WorkReport::each_field([&](const char* name, auto field) { json[name] = work.*field; });
    return json;
}

ExitCode report_error(const Error& error, bool json) {
    fmt::print(stderr, "safering: {}\n", error.message());
    if (json)
        print_json({{"error", to_json(error)}});
    return exit_failure;
}

} // namespace safering::tools
