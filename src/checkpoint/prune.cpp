#include "checkpoint/removal.hpp"
#include "checkpoint/retention.hpp"

namespace safering {

using namespace checkpoint;

Result<PruneReport> prune(const std::string& directory, Reactor& reactor,
                          const RetentionPolicy& policy, DryRun dry_run) {
    const auto list = list_checkpoints(directory, reactor);
    if (!list)
        return std::unexpected(list.error());
    PruneReport report;
    for (const Leftover& leftover : list->leftovers) {
        if (leftover.kind != Leftover::Kind::removal)
            continue;
        if (dry_run == DryRun::no)
            if (auto done = finish_removal(reactor, list->directory, leftover.name, policy.others);
                !done) {
                report.failures.push_back(std::move(done.error()));
                continue;
            }
        report.finished.push_back(leftover);
    }
    const std::vector<std::string> reasons = reasons_to_keep(*list, policy);
    // The oldest first: what a crash leaves is a run with fewer old steps, as the policy wants it.
    for (std::size_t i = 0; i < reasons.size(); ++i) {
        const StepCheckpoint& checkpoint = list->checkpoints[i];
        if (!reasons[i].empty()) {
            report.kept.push_back({checkpoint, reasons[i]});
            continue;
        }
        if (dry_run == DryRun::no)
            if (auto done = remove_checkpoint(reactor, list->directory, checkpoint, policy.others);
                !done) {
                report.failures.push_back(std::move(done.error()));
                continue;
            }
        report.removed.push_back(checkpoint);
    }
    return report;
}

} // namespace safering
