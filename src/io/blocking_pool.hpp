// Threads that carry operations out as blocking system calls: all operations of the threads
// backend, and those that io_uring would only hand to slower threads of its own.
#pragma once

#include <mutex>
#include <thread>
#include <vector>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>

#include "io/backend.hpp"

namespace safering {

class BlockingPool {
  public:
    /// Throws std::system_error where the system grants no thread.
    explicit BlockingPool(unsigned threads);
    BlockingPool(const BlockingPool&) = delete;
    BlockingPool& operator=(const BlockingPool&) = delete;
    /// Joins the threads; nothing may be in flight.
    ~BlockingPool() = default;

    void begin(Backend::Wake wake) { wake_ = std::move(wake); }
    void start(Operation& operation);
    void flush();
    void reap(std::vector<Operation*>& ended);

  private:
    void post(std::vector<Operation*> group);

    Backend::Wake wake_;
    std::vector<Operation*> started_;
    std::mutex mutex_;
    std::vector<Operation*> ended_;

    // Destroyed from the last to the first: no more work, the threads end, the context goes. Also
    // when not all threads could be had; asio::thread_pool waits for the others for ever then.
    boost::asio::io_context tasks_;
    std::vector<std::jthread> threads_;
    boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
};

} // namespace safering
