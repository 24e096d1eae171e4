// Where ranks plan and save alone (DCP's use_collectives=False) nobody sees the whole checkpoint: each rank adds
// its own shard files to the target.
//
//   1 the attempt's files are durable (the ranks' job), its directory is synced
//   2 the target is made if it is absent; its parent is synced
//   3 each file is renamed into the target, in place of one of that name; both directories are synced
// A crash leaves each file whole, old or new, and says nothing of the others': that a checkpoint is complete is
// for the caller to know. There is neither manifest nor index, by which readers go where they are: a target that has one is
// refused.
#pragma once

#include <string>
#include <vector>

#include <safering/reactor.hpp>

#include "checkpoint/attempt.hpp"

namespace safering::checkpoint {

/// Finishes a switch that was cut off. Errors: those of that; checkpoint_conflict where a whole checkpoint is in the way.
/// Blocks.
Result<void> check_part_target(Reactor& reactor, const TargetPath& target);

/// Steps 1 to 3. Blocks.
Result<void> commit_part(Reactor& reactor, const TargetPath& target, const std::string& directory,
                         const std::vector<std::string>& files);

} // namespace safering::checkpoint
