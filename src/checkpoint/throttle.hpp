// How long a save waits before its next cell, so that it stays within its limits. Knows no clock: whoever asks
// says what time it is, and how long the thread that writes has run.
#pragma once

#include <atomic>
#include <chrono>

#include <safering/save_limits.hpp>

namespace safering::checkpoint {

class Throttle {
  public:
    using Duration = std::chrono::nanoseconds;

    explicit Throttle(SaveLimits limits) : limits_(limits) {}

    /// Whether there is something to keep to.
    bool limited() const;
    /// Bytes that have been handed to the disk. One thread calls this and the next.
    void add_bytes(std::uint64_t bytes) { bytes_ += bytes; }
    /// How long from `now` on until another cell may go. `ran`: processor time of the thread, ever rising. Both
    /// since a time that stays the same.
    Duration wait(Duration now, Duration ran);
    /// No limits from now on, for whoever asks next. Any thread.
    void lift() { lifted_ = true; }

  private:
    SaveLimits limits_;
    std::atomic<bool> lifted_ = false;
    bool begun_ = false;
    Duration ran_{};
    std::uint64_t bytes_ = 0;
    Duration free_at_{}; // of what has been done so far
};

} // namespace safering::checkpoint
