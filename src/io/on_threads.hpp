#pragma once

#include <cstddef>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "io/blocked_signals.hpp"

namespace safering {

/// Runs `work` on this thread and on `threads` - 1 others, or on fewer where a container grants no more: so it
/// takes its share of the work from a counter. All have returned when this does. `work` must not throw.
template <typename Work>
void on_threads(std::size_t threads, const Work& work) {
    std::vector<std::jthread> others;
    others.reserve(threads);
    try {
        const BlockedSignals blocked;
        while (others.size() + 1 < threads)
            others.emplace_back([&work] { work(); });
    } catch (const std::system_error&) {
        // Those that are there do all of it.
    } catch (const std::bad_alloc&) {
        // As well.
    }
    work();
}

} // namespace safering
