// The first touch of memory, in a thread of its own: it can take longer than to read what then goes there (1 to 2
// s/GiB where a virtual machine's host has to give the memory back, 0.1 to 0.6 where it need not).
#pragma once

#include <cstddef>
#include <span>
#include <thread>
#include <vector>

namespace safering::io {

/// Smaller spans are left out: such memory comes from where allocations had been before.
inline constexpr std::size_t least_touched_bytes = 128 << 10;

/// Has the kernel provide what it has not yet provided of `memory`, from the last span's end on, for somebody who
/// fills it from the first one's beginning on: they meet half way. Contents stay as they are. A hint: nothing is
/// promised, and nothing fails; no thread where there is little to do, or where none is granted.
///
/// The thread ends at the end of what is returned, within some milliseconds; the memory must be there until then.
[[nodiscard]] std::jthread touch_ahead(std::vector<std::span<std::byte>> memory) noexcept;

} // namespace safering::io
