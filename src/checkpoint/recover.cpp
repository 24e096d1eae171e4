#include <safering/retention.hpp>

#include "checkpoint/attempt_directory.hpp"
#include "checkpoint/commit.hpp"
#include "checkpoint/perform.hpp"
#include "checkpoint/removal.hpp"

namespace safering {

using namespace checkpoint;

Result<RecoverReport> recover_checkpoint(const std::string& path, Reactor& reactor,
                                         StaleAttempts attempts) {
    const TargetPath target = make_target_path(path);
    RecoverReport report;
    auto finished = finish_switch(reactor, target);
    if (!finished)
        return std::unexpected(std::move(finished.error()));
    report.switch_finished = *finished;
    // After the switch: what it took the files from is stale now.
    auto list = list_checkpoints(target.parent, reactor);
    if (!list)
        return std::unexpected(std::move(list.error()));
    for (Leftover& leftover : list->leftovers) {
        if (leftover.target != target.name)
            continue;
        const bool removal = leftover.kind == Leftover::Kind::removal;
        const bool may_go = removal || (leftover.kind == Leftover::Kind::attempt &&
                                        (leftover.stale || attempts == StaleAttempts::all));
        if (!may_go) {
            report.left.push_back(std::move(leftover));
            continue;
        }
        auto done = removal ? finish_removal(reactor, target.parent, leftover.name,
                                             RetentionPolicy::Others::keep)
                            : remove_attempt_directory(reactor, leftover.path);
        if (done)
            report.removed.push_back(std::move(leftover));
        else
            report.failures.push_back(std::move(done.error()));
    }
    if (!report.removed.empty())
        if (auto synced = perform(reactor, {.op = Opcode::sync_directory, .path = target.parent});
            !synced)
            report.failures.push_back(std::move(synced.error()));
    return report;
}

} // namespace safering
