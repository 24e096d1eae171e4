// A file of any content, for who gets its bytes from first to last and never has them together (a
// serialiser):
//
//   1 create  a hidden file beside the target, O_EXCL, allocated as far as its size is known
//   2 write   bytes are copied to one of a few buffers, which go to the disk when full, past the page
//             cache where the file system lets them
//   3 commit  the last buffer, padded to a block; every completion reaped and checked; the file cut to its
//             length and fsynced; one rename to the target, whose directory is synced
//
// Until then what has the target's name is as it was, and afterwards the whole file is durable. The first
// failure ends it; a failed fsync is never retried.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <sys/types.h>

#include "checkpoint/attempt.hpp"
#include "checkpoint/perform.hpp"

namespace safering::checkpoint {

/// One thread at a time, not the reactor's own. Calls block. In a forked child all end in io_forked and touch
/// nothing.
class FileWriter {
  public:
    /// `expected_bytes` is allocated at once, so that a full disk shows now; the file may become larger or
    /// smaller. 0: not known. Errors: the system's, EISDIR where the target is a directory among them.
    static Result<std::unique_ptr<FileWriter>> create(std::shared_ptr<Reactor> reactor,
                                                      const std::string& path,
                                                      std::uint64_t expected_bytes = 0);
    /// Abandons what was not committed.
    ~FileWriter();

    /// Has copied all of `bytes` on return. A failure of earlier bytes may come here, or later; it is told
    /// again by every call that follows.
    Result<void> write(std::span<const std::byte> bytes);
    /// Gives what could not be tidied up: parts of earlier, killed attempts to write this target. After an
    /// error there is nothing of this attempt, but for what a failing system does not let go.
    Result<std::vector<std::string>> commit();
    /// Nothing of it stays; what has the target's name is as it was.
    Result<void> abandon();

    std::uint64_t size() const { return offset_ + filled_; }
    bool direct() const { return file_.direct(); }

  private:
    FileWriter(std::shared_ptr<Reactor> reactor, TargetPath target);
    Result<void> open(std::uint64_t expected_bytes);
    bool forked() const;
    Result<void> acquire();
    Result<void> send();
    Result<void> allocate(std::uint64_t end);
    Result<void> finish_file();
    Result<void> settle();
    Result<void> failed(Error error);
    std::vector<std::string> remove_older_parts();

    const std::shared_ptr<Reactor> reactor_;
    const TargetPath target_;
    const std::string attempt_ = make_attempt_id();
    const std::string part_; // the hidden file
    const pid_t process_;
    OpenFile file_;
    bool exists_ = false; // under the hidden name
    bool allocates_ = false;
    std::uint64_t allocated_ = 0;
    std::uint64_t offset_ = 0; // of the buffer that is being filled

    std::shared_ptr<std::byte> memory_;
    std::size_t buffer_bytes_ = 0;
    std::byte* current_ = nullptr;
    std::size_t filled_ = 0;

    std::mutex mutex_;
    std::condition_variable ended_;
    std::vector<std::byte*> free_;
    std::size_t in_flight_ = 0;
    std::optional<Error> error_;
};

} // namespace safering::checkpoint
