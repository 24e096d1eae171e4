// A switch that has been committed, in a target: who may write finishes it, whoever began it. commit.hpp has its steps.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "checkpoint/commit.hpp"

namespace safering::checkpoint {

/// The redo record of a target directory, if it has one. Errors: checkpoint_bad_manifest, checkpoint_not_a_file,
/// checkpoint_unsafe_name. Blocks.
Result<std::optional<RedoRecord>> read_redo_record(Reactor& reactor, const std::string& directory);

/// Those files of a switch that are in A so far, in the order of moving; none where A is gone. Blocks.
Result<std::vector<std::string>> still_to_move(Reactor& reactor, const std::string& parent,
                                               const RedoRecord& record);

/// Steps 5 to 9. Adds to `notes` what could not be removed in step 9, when the switch is done already. Errors:
/// those of the steps, and checkpoint_conflict where the files of A are neither in A nor in the target. Blocks.
Result<void> run_switch(Reactor& reactor, const TargetPath& target, const RedoRecord& record,
                        std::vector<std::string>& notes);

/// Finishes a switch that was committed and cut off; true where there was one. What is left of one that was done is
/// removed. Blocks.
Result<bool> finish_switch(Reactor& reactor, const TargetPath& target);

} // namespace safering::checkpoint
