// A line that counts up on a terminal, and nothing at all in a pipe or a log.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>

namespace safering::tools {

/// Erases its line when it goes. The callback may be called from any thread; at most ten lines a
/// second are written.
class Progress {
  public:
    explicit Progress(std::string what);
    ~Progress();
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;

    /// (done, total) in bytes; empty where standard error is no terminal. This must outlive it.
    std::function<void(std::uint64_t, std::uint64_t)> callback();

  private:
    void show(std::uint64_t done, std::uint64_t total);

    std::string what_;
    bool terminal_;
    std::atomic<std::int64_t> next_ms_ = 0;
};

} // namespace safering::tools
