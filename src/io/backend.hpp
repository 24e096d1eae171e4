// What the Reactor asks of whatever carries its requests out: io_uring,
// threads or a simulated disk.
//
// The invariants: an operation handed to start() is the backend's until reap()
// returns it, exactly once; and from start() on nothing that a backend does for it may fail for
// want of memory, which an operation that asks for some (a list) reports as its own error.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include <safering/reactor.hpp>

#include "io/operation.hpp"

namespace safering {

/// All functions run on the reactor's thread unless they say otherwise; none
/// blocks unless it says so.
class Backend {
  public:
    /// Makes the Reactor call reap() soon; any thread may call it.
    using Wake = std::function<void()>;

    virtual ~Backend() = default;
    /// Once, before the first start(), on the thread that will make all other calls.
    virtual void begin(Wake wake) = 0;
    /// Takes an operation. It may wait for flush().
    virtual void start(Operation& operation) = 0;
    /// Sends on what start() took. Called after every batch and every reap().
    virtual void flush() = 0;
    /// Appends the operations that have ended. No handler runs inside.
    virtual void reap(OperationQueue& ended) = 0;

    // The following may be called from any thread.

    /// How many operations it can hold at once.
    virtual unsigned capacity() const = 0;
    virtual BackendKind kind() const = 0;
    /// For ReactorInfo::reason.
    virtual const std::string& reason() const = 0;
    /// The unit of offsets at which a transfer of `file` may be resumed; 1 for buffered files.
    virtual std::uint64_t resume_alignment(int file) const = 0;
    /// Closes `file` at once, where there is no memory for an operation that would.
    virtual void close(int file) = 0;
    /// Blocks.
    virtual Result<FileSystemInfo> file_system(const std::string& directory) = 0;
};

/// Makes a reactor over any backend; on `context` if there is one, else with a thread of its own.
std::unique_ptr<Reactor> make_reactor(std::unique_ptr<Backend> backend, ReactorOptions options,
                                      std::unique_ptr<boost::asio::io_context> own_context,
                                      boost::asio::io_context& context);

} // namespace safering
