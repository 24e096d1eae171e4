#pragma once

#include <cstddef>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "io/blocked_signals.hpp"

namespace safering {

/// A thread that runs `work` and takes no signal of the host's; none (not joinable) where a container grants none.
template <typename Work>
std::jthread thread_if_granted(Work work) noexcept {
    try {
        const BlockedSignals blocked;
        return std::jthread(std::move(work));
    } catch (const std::system_error&) {
        return {};
    } catch (const std::bad_alloc&) {
        return {};
    }
}

/// Runs `work` on this thread and on `threads` - 1 others, or on fewer where a container grants no more: so it
/// takes its share of the work from a counter. All have returned when this does. `work` must not throw.
template <typename Work>
void on_threads(std::size_t threads, const Work& work) {
    std::vector<std::jthread> others;
    others.reserve(threads);
    while (others.size() + 1 < threads) {
        std::jthread other = thread_if_granted([&work] { work(); });
        if (!other.joinable())
            break; // those that are there do all of it
        others.push_back(std::move(other));
    }
    work();
}

} // namespace safering
