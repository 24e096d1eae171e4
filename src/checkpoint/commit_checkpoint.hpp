// The driver of the metadata commit: looks at the target, runs the machines of commit.hpp against the
// reactor, and cleans up after a success.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/commit.hpp"

namespace safering::checkpoint {

struct CommitOutcome {
    /// The renaming was done: the attempt's directory belongs to readers now and must not be removed.
    bool published = false;
    bool replaced = false;
    std::vector<std::string> notes;
    /// What failed, before or after the commit point.
    std::optional<Error> error;
};

/// `input` without target_present, stale and records_written, which are found here. Blocks.
CommitOutcome commit_checkpoint(Reactor& reactor, CommitInput input);

} // namespace safering::checkpoint
