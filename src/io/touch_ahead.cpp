#include "io/touch_ahead.hpp"

#include <algorithm>
#include <cstdint>

#include <sys/mman.h>

#include <safering/byte_range.hpp>

#include "io/on_threads.hpp"
#include "large_memory.hpp"

namespace safering::io {

namespace {

// What a wait for the end may take.
constexpr std::uintptr_t step_bytes = huge_page_bytes;
constexpr std::uintptr_t page_bytes = 4096;
// What takes less time than a thread.
constexpr std::size_t least_bytes = 16 << 20;

// By the last page before `end`; in a first one an allocator may have touched its own notes.
bool is_touched(std::uintptr_t end) {
    unsigned char resident = 0;
    return ::mincore(reinterpret_cast<void*>(end - page_bytes), page_bytes, &resident) == 0 &&
           resident % 2 == 1;
}

void touch(const std::stop_token& stop, std::span<const std::span<std::byte>> memory) {
    for (auto span = memory.rbegin(); span != memory.rend(); ++span) {
        const auto data = reinterpret_cast<std::uintptr_t>(span->data());
        const std::uintptr_t first = round_down(data, page_bytes);
        std::uintptr_t end = round_up(data + span->size(), page_bytes);
        while (end > first) {
            if (stop.stop_requested())
                return;
            const std::uintptr_t begin = std::max(first, round_down(end - 1, step_bytes));
            // Refused before Linux 5.14, and for memory that cannot be written.
            if (!is_touched(end))
                (void)::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_POPULATE_WRITE);
            end = begin;
        }
    }
}

} // namespace

std::jthread touch_ahead(std::vector<std::span<std::byte>> memory) noexcept {
    std::erase_if(memory, [](auto span) { return span.size() < least_touched_bytes; });
    std::size_t bytes = 0;
    for (const auto span : memory)
        bytes += span.size();
    if (bytes < least_bytes)
        return {};
    return thread_if_granted(
        [memory = std::move(memory)](const std::stop_token& stop) { touch(stop, memory); });
}

} // namespace safering::io
