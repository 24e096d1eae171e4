// The removal of one checkpoint of a run, which a crash cannot leave half done under its name.
//
//   1 rename D/<name> -> D/.<name>.<attempt>.removed, of the save that was listed and never replacing; look whether it
//     is still that one (another may have replaced it meanwhile), and rename it back if it is not
//   2 fsync D               <- GONE: before, it is there as it was; after, its name is free
//   3 unlink what the save wrote but the manifest (everything, where others go too); fsync the directory
//   4 unlink the manifest, remove the directory, fsync D
// A crash in 3 or 4 leaves a directory with a name of ours that holds the manifest, which lists what may go, or
// holds nothing: finish_removal() goes on there. One in 1 may leave another save in it, whole or with a redo record: that
// one is put back.
#pragma once

#include <string>

#include <safering/retention.hpp>

namespace safering::checkpoint {

/// Everything below a directory, and the directory. Links are removed, not followed; what is gone already is fine.
/// Blocks.
Result<void> remove_tree(Reactor& reactor, const std::string& directory);

/// All four steps. Errors: checkpoint_conflict where it is another save's by now. Blocks.
Result<void> remove_checkpoint(Reactor& reactor, const std::string& directory,
                               const StepCheckpoint& checkpoint, RetentionPolicy::Others others);

/// Steps 3 and 4, of a directory that step 1 renamed. Errors: checkpoint_conflict where it holds what the save did
/// not write, which stays; or another save, or its switch, which is finished: that gets its name back, if it is free.
/// Blocks.
Result<void> finish_removal(Reactor& reactor, const std::string& directory, const std::string& name,
                            RetentionPolicy::Others others);

} // namespace safering::checkpoint
