// Large memory on transparent huge pages where they are to be had: the first touch of 4 KiB pages costs more than
// what is then written to them (measured: 0.7 to 7 us a page on virtual machines).
#pragma once

#include <cstddef>
#include <memory>

namespace safering {

inline constexpr std::size_t huge_page_bytes = std::size_t{2} << 20;

/// Asks for huge pages in memory that has not been touched yet, as far as whole ones lie in it. A hint: nothing is
/// promised, and nothing fails.
void advise_huge(void* memory, std::size_t bytes);

/// Reserves room for `count` values of a vector, a string or a flat map, on huge pages where that is much.
template <typename Values>
void reserve_large(Values& values, std::size_t count) {
    if (count <= values.capacity())
        return;
    values.reserve(count);
    advise_huge(std::to_address(values.begin()), count * sizeof(*values.begin()));
}

} // namespace safering
