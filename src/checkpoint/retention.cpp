#include "checkpoint/retention.hpp"

#include <algorithm>
#include <ranges>

#include <fmt/format.h>

namespace safering {

using namespace checkpoint;

const StepCheckpoint* latest(const CheckpointList& list, const std::string& prefix) {
    const auto counts = [&](const StepCheckpoint& checkpoint) {
        return is_loadable(checkpoint) && (prefix.empty() || checkpoint.prefix == prefix);
    };
    const auto named =
        std::ranges::find_if(list.checkpoints, [&](const StepCheckpoint& checkpoint) {
            return counts(checkpoint) && checkpoint.name == list.pointer;
        });
    const StepCheckpoint* best = named == list.checkpoints.end() ? nullptr : &*named;
    const StepCheckpoint* const pointed = best;
    for (const StepCheckpoint& checkpoint : list.checkpoints) {
        if (!counts(checkpoint))
            continue;
        // Of one step the later save; of several prefixes this is the best that can be said.
        const auto order = [](const StepCheckpoint& c) { return std::pair(c.step, c.attempt); };
        const bool later = pointed == nullptr || checkpoint.attempt > pointed->attempt;
        if (best == nullptr || (later && order(checkpoint) > order(*best)))
            best = &checkpoint;
    }
    return best;
}

Result<std::optional<StepCheckpoint>> latest(const std::string& directory, Reactor& reactor,
                                             const std::string& prefix) {
    const auto list = list_checkpoints(directory, reactor);
    if (!list)
        return std::unexpected(list.error());
    const StepCheckpoint* newest = latest(*list, prefix);
    for (const StepCheckpoint& checkpoint : list->checkpoints)
        if (checkpoint.state == CheckpointState::unreadable &&
            (prefix.empty() || checkpoint.prefix == prefix) &&
            (newest == nullptr || checkpoint.step > newest->step ||
             checkpoint.name == list->pointer))
            return std::unexpected(Error{
                .code = checkpoint.error,
                .operation = "find the newest checkpoint",
                .file = checkpoint.path,
                .detail =
                    "it may be the newest one, and could not be looked at: " + checkpoint.reason +
                    "; try again, load another by its name, or move this one away"});
    return newest == nullptr ? std::nullopt : std::optional(*newest);
}

namespace checkpoint {

namespace {

// One prefix's checkpoints, by rising step.
void keep_of_series(std::span<const StepCheckpoint> series, std::span<std::string> reasons,
                    const RetentionPolicy& policy) {
    const std::uint64_t last = std::max<std::uint64_t>(policy.keep_last, 1);
    std::uint64_t newer = 0; // whole ones
    for (std::size_t i = series.size(); i-- > 0;) {
        const StepCheckpoint& checkpoint = series[i];
        std::string& reason = reasons[i];
        if (checkpoint.state == CheckpointState::foreign)
            reason = fmt::format("not known to be ours: {}", checkpoint.reason);
        else if (checkpoint.state == CheckpointState::unreadable)
            reason = fmt::format("it could not be looked at: {}", checkpoint.reason);
        else if (checkpoint.state == CheckpointState::switching)
            reason = "its last save is still being switched in";
        else if (checkpoint.state == CheckpointState::damaged && newer == 0)
            reason = "damaged, and nothing whole is newer";
        else if (is_loadable(checkpoint) && newer == 0)
            reason = "the newest";
        else if (is_loadable(checkpoint) && newer < last)
            reason = fmt::format("one of the last {}", last);
        else if (policy.keep_every != 0 && checkpoint.step % policy.keep_every == 0)
            reason = fmt::format("every {}", policy.keep_every);
        newer += is_loadable(checkpoint) ? 1 : 0;
    }
}

} // namespace

std::vector<std::string> reasons_to_keep(const CheckpointList& list,
                                         const RetentionPolicy& policy) {
    const std::span checkpoints(list.checkpoints);
    std::vector<std::string> reasons(checkpoints.size());
    for (std::size_t begin = 0, end = 0; begin < checkpoints.size(); begin = end) {
        const std::string& prefix = checkpoints[begin].prefix;
        while (end < checkpoints.size() && checkpoints[end].prefix == prefix)
            ++end;
        const auto series = std::span(reasons).subspan(begin, end - begin);
        if (policy.prefix.empty() || policy.prefix == prefix)
            keep_of_series(checkpoints.subspan(begin, end - begin), series, policy);
        else
            std::ranges::fill(series, "of another series");
    }
    const StepCheckpoint* const newest = latest(list);
    for (std::size_t i = 0; i < reasons.size(); ++i) {
        const StepCheckpoint& checkpoint = checkpoints[i];
        if (!reasons[i].empty())
            continue;
        if (&checkpoint == newest || checkpoint.name == list.pointer)
            reasons[i] = "the file `latest` names it";
        else if (std::ranges::any_of(list.leftovers, [&](const Leftover& leftover) {
                     return leftover.kind == Leftover::Kind::attempt && !leftover.stale &&
                            leftover.target == checkpoint.name;
                 }))
            reasons[i] = "it may be being saved again";
        else if (policy.others == RetentionPolicy::Others::keep && !checkpoint.others.empty())
            reasons[i] = fmt::format("it holds {}, which its save did not write",
                                     escaped(checkpoint.others.front()));
    }
    return reasons;
}

} // namespace checkpoint

} // namespace safering
