// `safering probe [DIR]`: what this machine and this file system let a save do.

#include <fmt/format.h>

#include "advice.hpp"
#include "command.hpp"
#include "text.hpp"

namespace safering::tools {

namespace {

Machine probe(const std::string& directory, BackendChoice backend) {
    const auto reactor = make_reactor(backend);
    Machine machine{.reactor = reactor->info(),
                    .backend_was_chosen = backend != BackendChoice::automatic,
                    .file_system = value_or_throw(reactor->file_system(directory)),
                    .huge_pages = probe_huge_pages(),
                    .io_uring_disabled = {},
                    .memlock_bytes = {}};
    read_limits(machine);
    return machine;
}

void print_text(const std::string& directory, const Machine& report) {
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
    const std::vector<std::string> advice = advise(report);
    for (const std::string& line : advice)
        fmt::print("advice       {}\n", line);
    if (advice.empty())
        fmt::print("advice       none: nothing here slows saves and loads down\n");
}

} // namespace

void add_probe(CLI::App& app, CommonOptions& common, Action& action) {
    auto* command = add_command(app, common, "probe",
                                "Tell which backend and file system features are available",
                                "Example: safering probe /checkpoints");
    auto directory = std::make_shared<std::string>(".");
    add_path(*command, "DIR", *directory, "Directory that checkpoints would be saved in (.)")
        ->required(false);
    add_backend_option(*command, common);
    command->callback([&common, &action, directory] {
        action = [&common, directory] {
            const Machine report = probe(*directory, common.backend);
            if (common.json)
                print_json({
                    {"directory", *directory},
                    {"reactor", to_json(report.reactor)},
                    {"file_system", to_json(report.file_system)},
                    {"huge_pages", to_json(report.huge_pages)},
                    {"memlock_bytes", report.memlock_bytes ? Json(*report.memlock_bytes) : Json()},
                    {"open_files", report.open_files},
                    {"advice", advise(report)},
                });
            else
                print_text(*directory, report);
            return exit_good;
        };
    });
}

} // namespace safering::tools
