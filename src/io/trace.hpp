// What happens when, as a Chrome trace (JSON array format) that Perfetto and chrome://tracing open. On where the
// environment variable SAFERING_TRACE names a file; costs one test of a flag where it is not set.
//
// Events are appended whole, so that all ranks of a host can name the same file: times are of the host's monotonic
// clock, and each process has a track of its own. When the last of them ends normally the file is one JSON value; after
// a kill it lacks its closing bracket, which the format allows, until a later run adds to it and closes it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <safering/request.hpp>

namespace safering::trace {

/// Any thread; the environment is looked at once, at the first call.
bool enabled();
/// Of CLOCK_MONOTONIC; 0 where nothing is traced.
std::int64_t now_ns();

/// A piece of work of this thread.
class Span {
  public:
    /// `name` must outlive it. `bytes` of 0 are not shown.
    explicit Span(std::string_view name, std::uint64_t bytes = 0)
        : name_(name), bytes_(bytes), begun_ns_(now_ns()) {}
    Span(const Span&) = delete;
    Span& operator=(const Span&) = delete;
    ~Span();

  private:
    std::string_view name_;
    std::uint64_t bytes_;
    std::int64_t begun_ns_;
};

/// Work that begins and ends in different calls, also on different threads: a rank's write_data.
class Interval {
  public:
    Interval() = default;
    explicit Interval(std::string name) : name_(std::move(name)), begun_ns_(now_ns()) {}
    Interval(const Interval&) = delete;
    Interval& operator=(const Interval&) = delete;
    ~Interval() { end(); }
    void begin(std::string name);
    /// Nothing where it has not begun, or has ended.
    void end();

  private:
    std::string name_;
    std::int64_t begun_ns_ = 0;
};

/// A request that the backend had from `begun_ns` until now.
void add(const Request& request, const Completion& completion, std::int64_t begun_ns);
/// Writes what is gathered. Also done now and then, and at the end of the process, which ends the trace.
void flush();
/// Adds why there is no trace, where one was asked for and could not be written.
void add_problem(std::vector<std::string>& notes);

} // namespace safering::trace
