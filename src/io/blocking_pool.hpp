// Threads that carry operations out as blocking system calls: all operations of the threads
// backend, and those that io_uring would only hand to slower threads of its own.
#pragma once

#include <mutex>
#include <thread>
#include <vector>

#include <semaphore.h>

#include "io/backend.hpp"

namespace safering {

class BlockingPool {
  public:
    /// Throws std::system_error where the system grants no thread.
    explicit BlockingPool(unsigned threads);
    BlockingPool(const BlockingPool&) = delete;
    BlockingPool& operator=(const BlockingPool&) = delete;
    /// Joins the threads; nothing may be in flight.
    ~BlockingPool();

    void begin(Backend::Wake wake) { wake_ = std::move(wake); }
    void start(Operation& operation) { started_.push_back(operation); }
    void flush();
    void reap(OperationQueue& ended);

  private:
    void work();
    void stop();
    void wake_threads(std::size_t count);

    Backend::Wake wake_;
    OperationQueue started_; // the loop's thread only

    // Counts the tasks that wait. Not a condition variable: glibc before 2.41 loses a wake-up of one of several
    // waiters now and then (sourceware bug 25847), and an operation with it.
    sem_t ready_;
    std::mutex mutex_;
    OperationQueue tasks_;
    OperationQueue ended_;
    std::vector<std::jthread> threads_;
};

} // namespace safering
