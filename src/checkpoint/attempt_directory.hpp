// The directory that an attempt's files are written in: made before the first byte, renamed away by the
// commit, or removed.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <safering/reactor.hpp>

#include "checkpoint/attempt.hpp"
#include "plan/layout.hpp"

namespace safering::checkpoint {

/// Heads of an attempt's files on their way to the disk, while ranks write the data behind them.
class HeadsUnderWay {
  public:
    HeadsUnderWay() = default; // none
    /// Blocks until they are durable, and closes their files. The first error, told once; io_forked at once in a
    /// forked child. Not on the reactor's thread; no commit before it has ended well.
    Result<void> wait();

  private:
    struct Writing;
    explicit HeadsUnderWay(std::shared_ptr<Writing> writing);
    friend Result<HeadsUnderWay> create_attempt_directory(Reactor& reactor,
                                                          const std::string& directory,
                                                          std::vector<plan::LayoutFile> files);

    std::shared_ptr<Writing> writing_;
};

/// Makes the directory and in it every file: created exclusively, allocated at full size, its head on its way.
/// Blocks, and for more files than may be open together until the heads of all but the last are durable. On an
/// error what was made is removed again.
Result<HeadsUnderWay> create_attempt_directory(Reactor& reactor, const std::string& directory,
                                               std::vector<plan::LayoutFile> files);

/// Removes a directory that create_attempt_directory made, with the files that only an attempt has. Anything
/// else in it is left, and is an error. Absent is fine. For an attempt that nobody goes on with: the caller's own, or
/// one that was switched in. Blocks.
Result<void> remove_attempt_directory(Reactor& reactor, const std::string& directory);

/// What became of attempts that others began.
struct RevokedAttempts {
    std::vector<std::string> removed;
    /// Committed, and not switched in yet.
    std::vector<std::string> switching;
    std::vector<Error> failures;
};

/// Removes attempts of other processes, which may wake up and go on at any moment: each is revoked first, so that it
/// can no longer be committed; what turns out to have been committed before stays; and the rest is renamed before it
/// is emptied, so that nobody commits what is half gone. `names` are directories of attempts in `parent`. Blocks.
RevokedAttempts remove_attempts(Reactor& reactor, const std::string& parent,
                                std::vector<std::string> names);

/// For an attempt that has saved: removes those for this target that are older, and what there is of itself, as somebody
/// else who finished its switch may have failed to. Tells what could not be removed.
std::vector<std::string> remove_attempts_up_to(Reactor& reactor, const TargetPath& target,
                                               const std::string& attempt);

} // namespace safering::checkpoint
