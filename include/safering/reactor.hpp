// The Reactor: the only part of safering that talks to the kernel about files.
//
//   1. Requests come in as a batch, from any thread, and are queued on the reactor's one executor.
//   2. At most `queue_depth` are in flight; they are handed to the backend together.
//   3. Completions are copied out to a ready list first; handlers run after that, in bounded
//      batches, never inside the queue walk and never inside submit().
//   4. A transfer that came back short is resumed here and nowhere else: memory, length and offset
//      move together. EINTR and EAGAIN are retried, a bounded number of times. A failed fsync
//      never is.
//   5. Each request ends in exactly one completion; until then its memory is the kernel's.
//      Destruction waits for the last one.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include <boost/asio/async_result.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/use_future.hpp>
#include <boost/system/error_code.hpp>

#include <safering/backend_kind.hpp>
#include <safering/completion.hpp>
#include <safering/request.hpp>

namespace safering {

class BufferPool;
class PeerHub;

/// For Boost.Asio's handlers. System errors keep their errno as value(); converted back to a
/// std::error_code, safering's own compare equal to their Errc.
inline boost::system::error_code to_boost(std::error_code error) {
    if (error.category() == std::system_category())
        return {error.value(), boost::system::system_category()};
    return error;
}

enum class BackendChoice : std::uint8_t {
    automatic, ///< io_uring where the kernel grants it, else threads
    io_uring,  ///< or an error that says why not
    threads,
};

struct ReactorOptions {
    BackendChoice backend = BackendChoice::automatic;
    /// Requests in flight, at most. Completion queue entries are never fewer.
    unsigned queue_depth = 64;
    /// Threads of the `threads` backend.
    unsigned threads = 2;
    /// The buffer pool: buffer_count buffers of buffer_bytes (a multiple of 4096), allocated when
    /// they are first used. Two thirds of them are in transfer at most; the disk goes on with the
    /// others as soon as those end.
    std::size_t buffer_bytes = std::size_t{4} << 20;
    unsigned buffer_count = 12;
    /// Direct transfers are asked of the disk in requests of so many bytes at most, a multiple of 4096: a buffer then
    /// goes in several, which are in flight together. 0: as long as a buffer.
    std::size_t transfer_bytes = 0;
    /// Where these numbers came from, for reports.
    std::string origin{};
};

/// Which backend runs and why; what `safering probe` prints and every save reports.
struct ReactorInfo {
    BackendKind backend = BackendKind::threads;
    /// How the ring was set up ("SINGLE_ISSUER|DEFER_TASKRUN"), or why there is none, with a hint:
    /// "io_uring_setup: Operation not permitted; kernel.io_uring_disabled is 2, ...".
    std::string reason;
    unsigned queue_depth = 0;
    std::size_t buffer_bytes = 0;
    unsigned buffer_count = 0;
    std::size_t transfer_bytes = 0;
    /// Whether the pool lies on transparent huge pages; false before its first use.
    bool huge_pages = false;
    /// Where these numbers came from: "defaults", or a measurement (safering/tuning.hpp). Empty where whoever made the
    /// reactor did not say.
    std::string origin{};
};

/// What a file system wants of direct transfers.
struct FileSystemInfo {
    /// "ext4", "xfs", "tmpfs", ... or the magic in hex.
    std::string type;
    /// Whether O_DIRECT and fallocate work here (tried on an unnamed file, which is removed).
    bool direct = false;
    bool allocate = false;
    /// Alignment of memory and of offsets and lengths, bytes; 4096 where the kernel does not say.
    std::uint32_t memory_alignment = 4096;
    std::uint32_t offset_alignment = 4096;
};

class SAFERING_API Reactor {
  public:
    using Handler = std::move_only_function<void(Completion)>;
    struct Submission {
        Request request;
        /// Runs once, on the reactor's executor.
        Handler on_complete;
    };

    /// With a thread of its own. No signal but those of a thread's own faults (SIGSEGV, ...) is ever
    /// handled on the library's threads: they block the others.
    /// Errors: EINVAL for options that are 0 or no multiple of what they must be one of;
    /// io_backend_unavailable where io_uring was asked for and is refused; what the system says
    /// where it grants no thread or no descriptor (EAGAIN, EMFILE).
    static Result<std::unique_ptr<Reactor>> create(ReactorOptions options = {});
    /// On the embedder's io_context, which must be run by one thread, the same one always, and must
    /// outlive the reactor. That thread is known to the reactor from its first turn on, that is
    /// from when the context first runs something that was submitted here.
    ///
    /// The destructor may be called
    ///   - on that thread, also inside a handler: it runs the context until all has ended;
    ///   - on another thread after the first turn: it waits, so the context must still be run while
    ///     anything is in flight;
    ///   - on any thread before the first turn, if no other thread runs the context or begins to
    ///     before the destructor has returned: it cannot tell that somebody does, and runs the
    ///     context itself. Where another thread runs it, wait for one completion first.
    static Result<std::unique_ptr<Reactor>> create(boost::asio::io_context& context,
                                                   ReactorOptions options = {});
    /// Waits for everything submitted and for its handlers, but one that destroys it. What those
    /// submit meanwhile ends in io_stopped, except that a close is carried out. Not on the thread
    /// that a reactor has of its own (asserted); for an embedder's context see create(). In a
    /// forked child it does nothing.
    ~Reactor();
    Reactor(const Reactor&) = delete;
    Reactor& operator=(const Reactor&) = delete;

    /// Queues a batch; the submissions are moved from. Any thread. Never blocks; no handler runs
    /// inside, except in a forked child, where each ends at once in io_forked. What a handler
    /// throws leaves through io_context::run(). Throws std::bad_alloc, and has taken nothing then:
    /// what has been taken ends in its handler whether there is memory or not.
    void submit(std::span<Submission> batch);
    void submit(Request request, Handler on_complete);

    /// Submits and blocks until the completion. Any thread but the reactor's own (asserted). Needs no
    /// memory.
    Completion wait(Request request);
    /// Submits together, blocks until all have completed; completions in the order of the requests.
    /// Throws std::bad_alloc before anything is submitted.
    std::vector<Completion> wait_all(std::vector<Request> requests);
    /// Closes a descriptor that has nothing left to report, whether there is memory or not. Waits for it
    /// where that cannot hang: not on the reactor's thread, nor on an embedder's context.
    void close(int file);

    boost::asio::io_context::executor_type executor() const;
    bool running_in_this_thread() const;
    /// Whether wait() ends without the embedder's help.
    bool has_own_thread() const;
    ReactorInfo info() const;
    /// `directory` must exist. Cached by device. Blocks.
    Result<FileSystemInfo> file_system(const std::string& directory);
    /// Made at first use. Throws Exception (ENOMEM, io_forked).
    BufferPool& buffers();
    /// Where other ranks of this host reach this one. Made at first use. Errors: what the system says
    /// where it grants no socket for it, io_forked.
    Result<PeerHub*> peers();
    /// Its name, for a rank's plan; empty where there is none, and the rank does without.
    std::string endpoint();

    // The same operations with a Boost.Asio completion token (a callback, use_future,
    // use_awaitable, ...), std::future by default. Handlers run on their associated executor, the
    // reactor's own if none. Throws std::bad_alloc before anything is submitted; afterwards the handler
    // is called whether there is memory or not. A future is told of an error by an exception of
    // Boost.Asio's, and a coroutine's executor is an any_io_executor: both want memory of their own.

    /// -> (error, Completion): any request.
    template <typename Token = boost::asio::use_future_t<>>
    auto async_perform(Request request, Token&& token = {}) {
        return boost::asio::async_initiate<Token, void(boost::system::error_code, Completion)>(
            Initiate<boost::system::error_code, Completion>{this}, token, std::move(request),
            [](boost::system::error_code error, Completion completion) {
                return std::tuple(error, std::move(completion));
            });
    }
    /// -> (error, bytes): all of `memory` unless the file ends before (io_unexpected_end).
    template <typename Token = boost::asio::use_future_t<>>
    auto async_read(int file, std::span<std::byte> memory, std::uint64_t offset,
                    Token&& token = {}) {
        return transfer(Request{.op = Opcode::read,
                                .file = file,
                                .data = memory.data(),
                                .length = memory.size(),
                                .offset = offset},
                        std::forward<Token>(token));
    }
    /// -> (error, bytes): all of `memory`.
    template <typename Token = boost::asio::use_future_t<>>
    auto async_write(int file, std::span<const std::byte> memory, std::uint64_t offset,
                     Token&& token = {}) {
        return transfer(Request{.op = Opcode::write,
                                .file = file,
                                .data = const_cast<std::byte*>(memory.data()),
                                .length = memory.size(),
                                .offset = offset},
                        std::forward<Token>(token));
    }
    /// -> (error)
    template <typename Token = boost::asio::use_future_t<>>
    auto async_fsync(int file, Token&& token = {}) {
        return boost::asio::async_initiate<Token, void(boost::system::error_code)>(
            Initiate<boost::system::error_code>{this}, token,
            Request{.op = Opcode::fsync, .file = file},
            [](boost::system::error_code error, const Completion&) { return std::tuple(error); });
    }

    struct Impl;
    /// For the library's own tests: any backend.
    explicit Reactor(std::unique_ptr<Impl> impl);

  private:
    // `values_of` makes a tuple of Values.
    template <typename... Values>
    struct Initiate {
        Reactor* reactor;

        template <typename CompletionHandler, typename ValuesOf>
        void operator()(CompletionHandler&& handler, Request request, ValuesOf values_of) const {
            auto ending = dispatched<Values...>(std::forward<CompletionHandler>(handler),
                                                reactor->executor());
            auto& held = ending.held();
            Submission submission{
                std::move(request),
                [ending = std::move(ending), values_of](Completion completion) mutable {
                    const boost::system::error_code error = to_boost(completion.error);
                    // In a forked child nobody runs the executor. Else this is not inside submit(), so the handler
                    // may run at once where its executor lets it: a future needs no further thread.
                    const bool forked = completion.error == Errc::io_forked;
                    std::apply(
                        [&](Values... values) {
                            forked ? ending.at_once(std::move(values)...)
                                   : ending(std::move(values)...);
                        },
                        values_of(error, std::move(completion)));
                }};
            try {
                reactor->submit({&submission, 1});
            } catch (const std::bad_alloc&) {
                if constexpr (!std::is_lvalue_reference_v<CompletionHandler>)
                    held.give_back(handler);
                throw;
            }
        }
    };

    template <typename Token>
    auto transfer(Request request, Token&& token) {
        return boost::asio::async_initiate<Token, void(boost::system::error_code, std::size_t)>(
            Initiate<boost::system::error_code, std::size_t>{this}, token, std::move(request),
            [](boost::system::error_code error, const Completion& completion) {
                return std::tuple(error, static_cast<std::size_t>(completion.result));
            });
    }

    std::unique_ptr<Impl> impl_;
};

} // namespace safering
