// A pool of threads with pread and pwrite: for kernels and containers that refuse io_uring.
#pragma once

#include "io/backend.hpp"

namespace safering {

/// `reason` says why this one was chosen.
std::unique_ptr<Backend> make_threads_backend(const ReactorOptions& options, std::string reason);

} // namespace safering
