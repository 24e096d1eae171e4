// The Reactor's life on its one thread: incoming -> pending -> in flight -> ended -> handlers.
//
// The invariants: the backend and everything marked so below is touched by the loop's thread only;
// a submission is counted in `outstanding_` from submit() until its handler has returned. What submit()
// has taken ends in its handler whether there is memory or not: all that it needs was set aside there.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <span>
#include <thread>

#include <boost/asio/executor_work_guard.hpp>

#include <safering/handler_memory.hpp>

#include "io/backend.hpp"

namespace safering {

class ReactorLoop : public std::enable_shared_from_this<ReactorLoop> {
  public:
    using Executor = boost::asio::io_context::executor_type;

    ReactorLoop(Executor executor, std::unique_ptr<Backend> backend, unsigned depth);

    /// Any thread. Throws std::bad_alloc, and has taken nothing then.
    void submit(std::span<Reactor::Submission> batch);
    /// Submits and blocks until all have ended; needs no memory. Not on the loop's thread.
    void wait(std::span<Operation> operations);
    /// Makes the loop take a turn soon. Any thread.
    void wake();
    /// Takes one. The loop's thread.
    void turn();
    /// Whatever is submitted from now on, but a close, ends in io_stopped. Any thread.
    void refuse_more();
    /// Until every handler has returned. Not on the loop's thread.
    void wait_until_idle();
    /// The same, and destroys the backend before another turn can begin: the loop's thread may take
    /// late ones, which then do nothing. Not on the loop's thread.
    void close_when_idle();
    /// Nothing is left but handlers that have not returned yet, which may be the caller.
    bool idle() const;
    /// The loop's thread; none before the first batch.
    std::thread::id thread() const;
    /// Destroys the backend of an idle loop. On the loop's thread, or when nobody runs it any more.
    void close();

    const Executor& executor() const { return executor_; }
    Backend& backend() { return *backend_; }

  private:
    void enqueue(OperationQueue& operations);
    void take_incoming();
    void settle_ended();
    void settle(Operation& operation);
    void retry_later(Operation& operation);
    void fill();
    void run_handlers();
    void leave();

    const Executor executor_;
    const unsigned depth_;
    std::atomic<bool> awake_ = false;
    HandlerMemory turn_memory_; // of the turn that has been asked for

    mutable std::mutex mutex_;
    std::condition_variable became_idle_;
    OperationQueue incoming_;
    std::size_t outstanding_ = 0;
    bool refusing_ = false;
    /// Handlers on the stack, and turns: more than one where a handler destroys the Reactor.
    std::size_t running_ = 0;
    unsigned turns_ = 0;
    std::thread::id thread_;

    // The loop's thread only.
    std::unique_ptr<Backend> backend_;
    bool begun_ = false;
    std::optional<boost::asio::executor_work_guard<Executor>> work_;
    OperationQueue pending_;
    unsigned in_flight_ = 0;
    unsigned paused_ = 0;
    OperationQueue ended_;
    OperationQueue finished_;
};

} // namespace safering
