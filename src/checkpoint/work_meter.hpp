// Counts and clocks of one job, for its WorkReport. One thread at a time; a reading of the clock costs 20 ns, and
// there are a few for each cell, none for each request.
#pragma once

#include <chrono>
#include <optional>

#include <safering/work_report.hpp>

namespace safering::checkpoint {

class WorkMeter {
  public:
    using Clock = std::chrono::steady_clock;

    /// Adds the time of its life to a phase.
    class Phase {
      public:
        explicit Phase(double& seconds) : seconds_(seconds) {}
        Phase(const Phase&) = delete;
        Phase& operator=(const Phase&) = delete;
        ~Phase() { seconds_ += WorkMeter::seconds(Clock::now() - begun_); }

      private:
        double& seconds_;
        Clock::time_point begun_ = Clock::now();
    };

    Phase plan() { return Phase(report_.plan_seconds); }
    Phase copy() { return Phase(report_.copy_seconds); }
    Phase verify() { return Phase(report_.verify_seconds); }
    void add_cell(bool copied) { ++(copied ? report_.copied_cells : report_.uncopied_cells); }
    void add_pieces(std::uint64_t pieces) { report_.pieces += pieces; }
    void add_digests(std::uint64_t digests) { report_.digests += digests; }
    void add_pause(Clock::duration pause) { report_.pause_seconds += seconds(pause); }

    void add_request(std::uint64_t bytes, bool direct) {
        ++report_.requests;
        (direct ? report_.direct_bytes : report_.cached_bytes) += bytes;
    }
    /// Requests that were added are the reactor's now.
    void submitted(std::uint64_t requests) {
        if (in_flight_ == 0) {
            const Clock::time_point now = Clock::now();
            if (!first_) {
                first_ = now;
            } else {
                ++report_.stalls;
                report_.stall_seconds += seconds(now - last_);
            }
        }
        in_flight_ += requests;
        report_.most_in_flight = std::max(report_.most_in_flight, in_flight_);
    }
    void ended(unsigned retries = 0) {
        report_.retries += retries;
        if (--in_flight_ == 0)
            last_ = Clock::now();
    }

    /// Everything has ended.
    WorkReport report() const {
        WorkReport out = report_;
        const Clock::time_point now = Clock::now();
        out.seconds = seconds(now - begun_);
        if (first_) {
            out.transfer_seconds = seconds(last_ - *first_);
            out.flush_seconds = seconds(now - last_);
        }
        return out;
    }

  private:
    static double seconds(Clock::duration duration) {
        return std::chrono::duration<double>(duration).count();
    }

    WorkReport report_;
    std::uint64_t in_flight_ = 0;
    Clock::time_point begun_ = Clock::now();
    std::optional<Clock::time_point> first_;
    Clock::time_point last_{};
};

} // namespace safering::checkpoint
