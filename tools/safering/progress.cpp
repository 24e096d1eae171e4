#include "progress.hpp"

#include <chrono>
#include <cstdio>

#include <fmt/format.h>
#include <unistd.h>

#include "text.hpp"

namespace safering::tools {

Progress::Progress(std::string what) : what_(std::move(what)), terminal_(isatty(STDERR_FILENO)) {}

Progress::~Progress() {
    if (terminal_ && next_ms_ != 0)
        fmt::print(stderr, "\r\x1b[K");
}

std::function<void(std::uint64_t, std::uint64_t)> Progress::callback() {
    if (!terminal_)
        return {};
    return [this](std::uint64_t done, std::uint64_t total) { show(done, total); };
}

void Progress::show(std::uint64_t done, std::uint64_t total) {
    const auto now = std::chrono::duration_cast<std::chrono::milliseconds>(
                         std::chrono::steady_clock::now().time_since_epoch())
                         .count();
    std::int64_t next = next_ms_;
    if (now < next || !next_ms_.compare_exchange_strong(next, now + 100))
        return;
    const std::uint64_t percent = total == 0 ? 100 : done * 100 / total;
    fmt::print(stderr, "\r\x1b[K{}: {} of {} ({} %)", what_, format_bytes(done),
               format_bytes(total), percent);
    std::fflush(stderr);
}

} // namespace safering::tools
