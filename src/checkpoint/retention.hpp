// Which checkpoints of a run a policy keeps, and why. Pure.
#pragma once

#include <string>
#include <vector>

#include <safering/retention.hpp>

namespace safering::checkpoint {

/// Whether a load of it would succeed, as far as names and sizes tell.
inline bool is_loadable(const StepCheckpoint& checkpoint) {
    return checkpoint.state == CheckpointState::whole ||
           checkpoint.state == CheckpointState::switching;
}

/// Parallel to list.checkpoints: why each is kept; empty: it may go.
std::vector<std::string> reasons_to_keep(const CheckpointList& list, const RetentionPolicy& policy);

} // namespace safering::checkpoint
