// Counts jobs that run on a reactor and borrow from an object, so that its destructor can wait for them: a
// dropped future detaches, it never frees what the kernel still reads.
#pragma once

#include <condition_variable>
#include <mutex>
#include <utility>

#include <unistd.h>

namespace safering::checkpoint {

class JobCounter {
  public:
    /// Held by a job until it has ended.
    class Ticket {
      public:
        explicit Ticket(JobCounter& counter) : counter_(&counter) {
            const std::lock_guard lock(counter.mutex_);
            ++counter.running_;
        }
        Ticket(Ticket&& other) noexcept : counter_(std::exchange(other.counter_, nullptr)) {}
        Ticket& operator=(Ticket&&) = delete;
        ~Ticket() {
            if (counter_ == nullptr)
                return;
            const std::lock_guard lock(counter_->mutex_);
            if (--counter_->running_ == 0)
                counter_->idle_.notify_all(); // under the lock: the counter may be gone right after
        }

      private:
        JobCounter* counter_;
    };

    /// Blocks. Not from the reactor's thread. In a forked child nothing runs, and nothing is waited for.
    void wait_idle() {
        if (::getpid() != process_)
            return;
        std::unique_lock lock(mutex_);
        idle_.wait(lock, [this] { return running_ == 0; });
    }

  private:
    std::mutex mutex_;
    std::condition_variable idle_;
    std::size_t running_ = 0;
    const pid_t process_ = ::getpid();
};

} // namespace safering::checkpoint
