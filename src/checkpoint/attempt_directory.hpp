// The directory that an attempt's files are written in: made before the first byte, renamed away by the
// commit, or removed.
#pragma once

#include <string>
#include <vector>

#include <safering/reactor.hpp>

#include "checkpoint/attempt.hpp"
#include "plan/layout.hpp"

namespace safering::checkpoint {

/// Makes the directory and in it every file: created exclusively, allocated at full size, its head written
/// and fsynced. Blocks. On an error what was made is removed again.
Result<void> create_attempt_directory(Reactor& reactor, const std::string& directory,
                                      const std::vector<plan::LayoutFile>& files);

/// Removes a directory that create_attempt_directory made, with the files that only an attempt has. Anything
/// else in it is left, and is an error. Absent is fine. Blocks.
Result<void> remove_attempt_directory(Reactor& reactor, const std::string& directory);

/// Removes attempts for this target that are older than `attempt`; tells what could not be removed.
std::vector<std::string> remove_older_attempts(Reactor& reactor, const TargetPath& target,
                                               const std::string& attempt);

} // namespace safering::checkpoint
