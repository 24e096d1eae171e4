// What the Reactor asks of whatever carries its requests out: io_uring,
// threads or a simulated disk.
//
// The invariant: an operation handed to start() is the backend's until reap()
// returns it, exactly once.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <safering/reactor.hpp>

namespace safering {

/// One request on its way. The Reactor owns it; a backend borrows it between start() and reap().
struct Operation {
    /// What the submitter asked for, untouched.
    Request request;
    Reactor::Handler on_complete;

    /// What this attempt is to do: the request, with data, length and offset of what is left of it.
    /// Only `length`, `offset` and `data` differ from the request.
    std::byte* data = nullptr;
    std::uint64_t length = 0;
    std::uint64_t offset = 0;
    /// How this attempt ended; the backend's to fill. `result` of a transfer:
    /// bytes of this attempt.
    Completion completion{};

    /// When the first attempt began, where that is traced.
    std::int64_t begun_ns = 0;
    /// Bytes moved by all attempts, and how often in a row nothing moved.
    std::uint64_t moved = 0;
    unsigned idle = 0;
    unsigned retries = 0;
};

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
    virtual void reap(std::vector<Operation*>& ended) = 0;

    // The following may be called from any thread.

    /// How many operations it can hold at once.
    virtual unsigned capacity() const = 0;
    virtual BackendKind kind() const = 0;
    /// For ReactorInfo::reason.
    virtual const std::string& reason() const = 0;
    /// The unit of offsets at which a transfer of `file` may be resumed; 1 for buffered files.
    virtual std::uint64_t resume_alignment(int file) const = 0;
    /// Blocks.
    virtual Result<FileSystemInfo> file_system(const std::string& directory) = 0;
};

/// Makes a reactor over any backend; on `context` if there is one, else with a thread of its own.
std::unique_ptr<Reactor> make_reactor(std::unique_ptr<Backend> backend, ReactorOptions options,
                                      std::unique_ptr<boost::asio::io_context> own_context,
                                      boost::asio::io_context& context);

} // namespace safering
