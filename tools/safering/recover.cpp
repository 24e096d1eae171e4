// `safering recover TARGET`: ends what a save that was cut off has begun.

#include <filesystem>

#include <fmt/format.h>

#include "command.hpp"
#include "steps.hpp"

namespace safering::tools {

namespace {

Json report_to_json(const std::string& target, const RecoverReport& report) {
    Json out{{"target", target}, {"switch_finished", report.switch_finished}};
    out["removed"] = Json::array();
    for (const Leftover& leftover : report.removed)
        out["removed"].push_back(to_json(leftover));
    out["left"] = Json::array();
    for (const Leftover& leftover : report.left)
        out["left"].push_back(to_json(leftover));
    out["failures"] = Json::array();
    for (const Error& failure : report.failures)
        out["failures"].push_back(to_json(failure));
    return out;
}

void print_text(const std::string& target, const RecoverReport& report) {
    if (report.switch_finished)
        fmt::print("finished  {}: the committed save is in place\n", escaped(target));
    for (const Leftover& leftover : report.removed)
        fmt::print("removed   {}\n", escaped(leftover.name));
    for (const Leftover& leftover : report.left)
        fmt::print("left      {}: {}\n", escaped(leftover.name),
                   leftover.kind == Leftover::Kind::switching
                       ? "another checkpoint's files are still to be moved in from there"
                       : "it may still be written to; --all-attempts removes it");
    for (const Error& failure : report.failures)
        fmt::print("failed    {}\n", failure.message());
    if (!report.switch_finished && report.removed.empty() && report.left.empty() &&
        report.failures.empty())
        fmt::print("nothing to recover{}\n",
                   std::filesystem::exists(target) ? "" : ", and no checkpoint is there");
}

ExitCode recover(const std::string& target, bool all_attempts, const CommonOptions& common) {
    const auto reactor = make_reactor(common.backend);
    const RecoverReport report = value_or_throw(recover_checkpoint(
        target, *reactor, all_attempts ? StaleAttempts::all : StaleAttempts::overtaken));
    if (common.json)
        print_json(report_to_json(target, report));
    else
        print_text(target, report);
    return end_removal(report.failures);
}

} // namespace

void add_recover(CLI::App& app, CommonOptions& common, Action& action) {
    auto* command = add_command(
        app, common, "recover", "Finish what a save that was cut off has begun",
        "Moves in the files of a committed save, and removes attempts that a later save has "
        "overtaken. An\nattempt that may still be written to stays, unless --all-attempts says "
        "that no save is running.\n"
        "Example: safering recover /checkpoints/step-1000");
    struct Arguments {
        std::string target;
        bool all_attempts = false;
    };
    auto arguments = std::make_shared<Arguments>();
    add_path(*command, "TARGET", arguments->target, "The checkpoint, there or not");
    command->add_flag("--all-attempts", arguments->all_attempts,
                      "Also attempts that may be in progress: only where no save to TARGET runs");
    add_backend_option(*command, common);
    command->callback([&common, &action, arguments] {
        action = [&common, arguments] {
            return recover(arguments->target, arguments->all_attempts, common);
        };
    });
}

} // namespace safering::tools
