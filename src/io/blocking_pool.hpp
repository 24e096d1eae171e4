// Threads that carry operations out as blocking system calls: all operations of the threads
// backend, and those that io_uring would only hand to slower threads of its own.
#pragma once

#include <mutex>
#include <vector>

#include <boost/asio/thread_pool.hpp>

#include "io/backend.hpp"

namespace safering {

class BlockingPool {
  public:
    explicit BlockingPool(unsigned threads);
    /// Joins the threads; nothing may be in flight.
    ~BlockingPool();

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
    boost::asio::thread_pool threads_;
};

} // namespace safering
