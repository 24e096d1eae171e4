// Memory for loaded tensors, on transparent huge pages where they are to be had: first touch of 4 KiB pages
// costs more than reading the bytes (measured: 1.5 to 7 us a page on virtual machines).
#pragma once

#include <cstddef>
#include <memory>

#include <safering/error.hpp>

namespace safering::io {

/// Zero-filled, 2 MiB aligned; null for 0 bytes. Errors: ENOMEM. Unlike a BufferPool it
/// is a forked child's too.
Result<std::shared_ptr<std::byte>> allocate_huge(std::size_t bytes);

} // namespace safering::io
