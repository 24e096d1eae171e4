// `safering prune DIR`: removes old checkpoints of a run, never the newest whole one.

#include <fmt/format.h>

#include "command.hpp"
#include "steps.hpp"
#include "text.hpp"

namespace safering::tools {

namespace {

struct PruneArguments {
    std::string directory;
    RetentionPolicy policy;
    bool others = false;
    bool dry_run = false;
};

Json report_to_json(const PruneArguments& arguments, const PruneReport& report) {
    Json out{{"directory", arguments.directory}, {"dry_run", arguments.dry_run}};
    out["removed"] = Json::array();
    for (const StepCheckpoint& checkpoint : report.removed)
        out["removed"].push_back(to_json(checkpoint));
    out["kept"] = Json::array();
    for (const PruneReport::Kept& kept : report.kept) {
        Json checkpoint = to_json(kept.checkpoint);
        checkpoint["kept_because"] = kept.reason;
        out["kept"].push_back(std::move(checkpoint));
    }
    out["finished"] = Json::array();
    for (const Leftover& leftover : report.finished)
        out["finished"].push_back(to_json(leftover));
    out["failures"] = Json::array();
    for (const Error& failure : report.failures)
        out["failures"].push_back(to_json(failure));
    return out;
}

void print_text(const PruneArguments& arguments, const PruneReport& report) {
    std::uint64_t bytes = 0;
    for (const PruneReport::Kept& kept : report.kept)
        fmt::print("keeps    {}: {}\n", escaped(kept.checkpoint.name), kept.reason);
    for (const Leftover& leftover : report.finished)
        fmt::print("{}  {}, which an earlier call began\n",
                   arguments.dry_run ? "would go on with" : "went on with", escaped(leftover.name));
    for (const StepCheckpoint& checkpoint : report.removed) {
        fmt::print("{}  {}, {}\n", arguments.dry_run ? "would remove" : "removed",
                   escaped(checkpoint.name), format_bytes(checkpoint.bytes));
        bytes += checkpoint.bytes;
    }
    for (const Error& failure : report.failures)
        fmt::print("failed   {}\n", failure.message());
    fmt::print("{} {} in {}\n", arguments.dry_run ? "would free" : "freed", format_bytes(bytes),
               counted(report.removed.size(), "checkpoint"));
}

ExitCode prune_directory(const PruneArguments& arguments, const CommonOptions& common) {
    const auto reactor = make_reactor(common.backend);
    RetentionPolicy policy = arguments.policy;
    if (arguments.others)
        policy.others = RetentionPolicy::Others::remove;
    const PruneReport report = value_or_throw(
        prune(arguments.directory, *reactor, policy, arguments.dry_run ? DryRun::yes : DryRun::no));
    if (common.json)
        print_json(report_to_json(arguments, report));
    else
        print_text(arguments, report);
    return end_removal(report.failures);
}

} // namespace

void add_prune(CLI::App& app, CommonOptions& common, Action& action) {
    auto* command = add_command(
        app, common, "prune", "Remove old checkpoints of a run",
        "The newest whole checkpoint of each prefix always stays, and so does what the file "
        "`latest` names, what\nis not known to be ours, and what may be being saved. A checkpoint "
        "goes at once, by a durable\nrename, or not at all.\n"
        "Example: safering prune /checkpoints --keep-last 3 --keep-every 10000 --dry-run");
    auto arguments = std::make_shared<PruneArguments>();
    add_path(*command, "DIR", arguments->directory, "The directory that holds the checkpoints");
    command
        ->add_option("--keep-last", arguments->policy.keep_last,
                     "The newest so many of each prefix stay; at least 1")
        ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1'000'000'000}))
        ->type_name("K")
        ->required();
    command
        ->add_option("--keep-every", arguments->policy.keep_every,
                     "So do steps that this divides, for ever")
        ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1'000'000'000'000'000'000}))
        ->type_name("N");
    command->add_option("--prefix", arguments->policy.prefix, "Only checkpoints named <prefix>-...")
        ->check([](const std::string& prefix) {
            return prefix.find('/') == std::string::npos
                       ? std::string()
                       : fmt::format(
                             "\"{}\" is a path; a prefix is the name of a checkpoint in DIR up "
                             "to \"-\" and its step",
                             escaped(prefix));
        })
        ->type_name("PREFIX");
    command->add_flag("--with-others", arguments->others,
                      "Also checkpoints that hold files of others (config.json), with these");
    command->add_flag("--dry-run", arguments->dry_run, "Tell what would go, and change nothing");
    add_backend_option(*command, common);
    command->callback([&common, &action, arguments] {
        action = [&common, arguments] { return prune_directory(*arguments, common); };
    });
}

} // namespace safering::tools
