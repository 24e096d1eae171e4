// io_uring for direct reads and writes, fsync and fallocate; threads for what it would only punt.
#pragma once

#include <boost/asio/io_context.hpp>

#include "io/backend.hpp"
#include "io/ring_setup.hpp"

namespace safering {

/// The ring wakes the reactor through `context`. Errors: io_backend_unavailable.
Result<std::unique_ptr<Backend>>
make_uring_backend(const ReactorOptions& options, boost::asio::io_context& context,
                   const RingSetup& setup = io_uring_queue_init_params);

} // namespace safering
