// Requests as blocking system calls. The only file that knows errno's sign.
#pragma once

#include "io/backend.hpp"

namespace safering::posix {

/// Carries out one attempt at `operation` and fills its completion. Blocks. Any thread.
void perform(Operation& operation);
/// What a system call that returns -errno on failure (an io_uring completion, liburing) has said.
Completion completion_of(int result);
std::error_code error_of(int result);
/// The calling thread's errno.
std::error_code last_error();

/// Whether `file` was opened with O_DIRECT and still is; does not block.
bool is_direct(int file);
/// The offsets at which a direct transfer may start; 4096 where the kernel does not say.
std::uint32_t direct_offset_alignment(int file);

} // namespace safering::posix
