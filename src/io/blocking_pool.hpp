// Threads that carry operations out as blocking system calls: all operations of the threads
// backend, and those that io_uring would only hand to slower threads of its own.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "io/backend.hpp"

namespace safering {

class BlockingPool {
  public:
    /// Throws std::system_error where the system grants no thread.
    explicit BlockingPool(unsigned threads);
    BlockingPool(const BlockingPool&) = delete;
    BlockingPool& operator=(const BlockingPool&) = delete;
    /// Joins the threads; nothing may be in flight.
    ~BlockingPool() { stop(); }

    void begin(Backend::Wake wake) { wake_ = std::move(wake); }
    void start(Operation& operation) { started_.push_back(operation); }
    void flush();
    void reap(OperationQueue& ended);

  private:
    void work();
    void stop();

    Backend::Wake wake_;
    OperationQueue started_; // the loop's thread only

    std::mutex mutex_;
    std::condition_variable changed_;
    OperationQueue tasks_;
    OperationQueue ended_;
    bool over_ = false;
    std::vector<std::jthread> threads_;
};

} // namespace safering
