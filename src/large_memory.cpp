#include "large_memory.hpp"

#include <cstdint>

#include <sys/mman.h>

#include <safering/byte_range.hpp>

namespace safering {

void advise_huge(void* memory, std::size_t bytes) {
    const auto begin = reinterpret_cast<std::uintptr_t>(memory);
    const std::uintptr_t first = round_up(begin, huge_page_bytes);
    const std::uintptr_t end = round_down(begin + bytes, huge_page_bytes);
    if (first < end) // without huge pages the memory works all the same
        (void)::madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
}

} // namespace safering
