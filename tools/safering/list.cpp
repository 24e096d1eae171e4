// `safering list DIR`: the checkpoints of a run, and what saves that were cut off left beside them.

#include <algorithm>
#include <filesystem>
#include <system_error>

#include <fmt/format.h>

#include "command.hpp"
#include "steps.hpp"
#include "text.hpp"

namespace safering::tools {

namespace {

Json list_to_json(const CheckpointList& list) {
    const StepCheckpoint* const newest = latest(list);
    Json checkpoints = Json::array();
    for (const StepCheckpoint& checkpoint : list.checkpoints)
        checkpoints.push_back(to_json(checkpoint));
    Json leftovers = Json::array();
    for (const Leftover& leftover : list.leftovers)
        leftovers.push_back(to_json(leftover));
    return {
        {"directory", list.directory},
        {"latest", newest == nullptr ? Json() : Json(newest->name)},
        {"pointer", list.pointer ? Json(*list.pointer) : Json()},
        {"checkpoints", std::move(checkpoints)},
        {"leftovers", std::move(leftovers)},
    };
}

bool holds_tensors(const std::string& directory) {
    std::error_code unreadable; // then it was said before
    const std::filesystem::directory_iterator entries(directory, unreadable);
    return std::ranges::any_of(entries, [](const std::filesystem::directory_entry& entry) {
        return entry.path().extension() == ".safetensors";
    });
}

void print_text(const CheckpointList& list) {
    const StepCheckpoint* const newest = latest(list);
    std::size_t width = 4;
    for (const StepCheckpoint& checkpoint : list.checkpoints)
        width = std::max(width, escaped(checkpoint.name).size());
    if (list.checkpoints.empty())
        fmt::print("no checkpoints named like step-1000 in {}{}\n", escaped(list.directory),
                   holds_tensors(list.directory) ? ", which is one itself: safering inspect" : "");
    else
        fmt::print("{:<{}}  {:<10}{:>10}{:>7}  {}\n", "name", width, "state", "size", "files",
                   "saved");
    for (const StepCheckpoint& checkpoint : list.checkpoints) {
        const bool ours = !checkpoint.attempt.empty();
        fmt::print("{:<{}}  {:<10}{:>10}{:>7}  {}{}\n", escaped(checkpoint.name), width,
                   name(checkpoint.state), ours ? format_bytes(checkpoint.bytes) : "",
                   ours ? std::to_string(checkpoint.files) : "",
                   ours ? format_time(checkpoint.saved_ms) : "",
                   &checkpoint == newest ? "  <- latest" : "");
        if (!checkpoint.reason.empty())
            fmt::print("{:<{}}  {}\n", "", width, checkpoint.reason);
    }
    for (const Leftover& leftover : list.leftovers)
        fmt::print("{}  {}\n", escaped(leftover.name), words(leftover));
}

} // namespace

void add_list(CLI::App& app, CommonOptions& common, Action& action) {
    auto* command = add_command(
        app, common, "list", "Show the checkpoints of a run and what cut-off saves left",
        "A checkpoint of a run is a directory named <prefix>-<digits> or <prefix>_<digits>. Reads "
        "names,\nmanifests and sizes, and changes nothing.\n"
        "Example: safering list /checkpoints\n"
        "Example: safering list /checkpoints --json | jq -r .latest");
    auto directory = std::make_shared<std::string>();
    add_path(*command, "DIR", *directory, "The directory that holds the checkpoints");
    add_backend_option(*command, common);
    command->callback([&common, &action, directory] {
        action = [&common, directory] {
            const auto reactor = make_reactor(common.backend);
            const CheckpointList list = value_or_throw(list_checkpoints(*directory, *reactor));
            if (common.json)
                print_json(list_to_json(list));
            else
                print_text(list);
            return exit_good;
        };
    });
}

} // namespace safering::tools
