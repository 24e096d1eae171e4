// Requests as blocking system calls. The only file that knows errno's sign.
#pragma once

#include <optional>

#include "io/backend.hpp"

struct statx;

namespace safering::posix {

/// Carries out one attempt at `operation` and fills its completion. Blocks. Any thread.
void perform(Operation& operation);
Completion close(int file);
/// What a system call that returns -errno on failure (an io_uring completion, liburing) has said.
Completion completion_of(int result);
std::error_code error_of(int result);
/// The calling thread's errno.
std::error_code last_error();

/// Whether `file` was opened with O_DIRECT and still is; does not block.
bool is_direct(int file);
struct DirectAlignment {
    std::uint32_t memory = 4096;
    std::uint32_t offset = 4096;
};
/// What direct transfers must be aligned to, 4096 where the kernel does not say
/// (STATX_DIOALIGN, since 6.1). Nothing where they do not work, or want more than the 4096
/// bytes in which this library plans.
std::optional<DirectAlignment> direct_alignment(const struct statx& status);
std::optional<DirectAlignment> direct_alignment(int file);
/// The offsets at which a direct transfer of `file` may start.
std::uint32_t direct_offset_alignment(int file);

} // namespace safering::posix
