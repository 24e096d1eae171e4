#include <safering/retention.hpp>

#include <algorithm>
#include <iterator>

#include "checkpoint/attempt_directory.hpp"
#include "checkpoint/finish_switch.hpp"
#include "checkpoint/perform.hpp"
#include "checkpoint/removal.hpp"

namespace safering {

using namespace checkpoint;

namespace {

bool is_removal(const Leftover& leftover) {
    return leftover.kind == Leftover::Kind::removal;
}

Result<std::vector<Leftover>> leftovers_of(Reactor& reactor, const TargetPath& target) {
    auto list = list_checkpoints(target.parent, reactor);
    if (!list)
        return std::unexpected(std::move(list.error()));
    std::erase_if(list->leftovers,
                  [&](const Leftover& leftover) { return leftover.target != target.name; });
    return std::move(list->leftovers);
}

} // namespace

Result<RecoverReport> recover_checkpoint(const std::string& path, Reactor& reactor,
                                         StaleAttempts attempts) {
    const TargetPath target = make_target_path(path);
    RecoverReport report;
    const auto note = [&](Leftover& leftover, Result<void> done) {
        if (done)
            report.removed.push_back(std::move(leftover));
        else
            report.failures.push_back(std::move(done.error()));
    };
    // First, as one may give the target back.
    auto leftovers = leftovers_of(reactor, target);
    if (!leftovers)
        return std::unexpected(std::move(leftovers.error()));
    for (Leftover& leftover : *leftovers)
        if (is_removal(leftover))
            note(leftover, finish_removal(reactor, target.parent, leftover.name,
                                          RetentionPolicy::Others::keep));
    auto finished = finish_switch(reactor, target);
    if (!finished)
        return std::unexpected(std::move(finished.error()));
    report.switch_finished = *finished;
    // Again: what the switch took the files from is stale now.
    leftovers = leftovers_of(reactor, target);
    if (!leftovers)
        return std::unexpected(std::move(leftovers.error()));
    std::vector<std::string> stale;
    for (const Leftover& leftover : *leftovers)
        if (leftover.kind == Leftover::Kind::attempt &&
            (leftover.stale || attempts == StaleAttempts::all))
            stale.push_back(leftover.name);
    RevokedAttempts revoked = remove_attempts(reactor, target.parent, stale);
    std::ranges::move(revoked.failures, std::back_inserter(report.failures));
    const auto is_in = [](const std::vector<std::string>& names, const Leftover& leftover) {
        return std::ranges::find(names, leftover.name) != names.end();
    };
    for (Leftover& leftover : *leftovers)
        if (is_in(revoked.removed, leftover))
            report.removed.push_back(std::move(leftover));
        else if (!is_removal(leftover) &&
                 (!is_in(stale, leftover) || is_in(revoked.switching, leftover)))
            report.left.push_back(std::move(leftover));
    if (!report.removed.empty())
        if (auto synced = perform(reactor, {.op = Opcode::sync_directory, .path = target.parent});
            !synced)
            report.failures.push_back(std::move(synced.error()));
    return report;
}

} // namespace safering
