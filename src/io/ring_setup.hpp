// Setting up an io_uring, or saying why there is none.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include <liburing.h>

#include <safering/error.hpp>

namespace safering {

/// io_uring_queue_init_params, or a test's stand-in for a kernel that refuses: 0 or -errno.
using RingSetup = std::function<int(unsigned entries, io_uring* ring, io_uring_params* params)>;

/// A ring, closed when it goes. Where `deferred` is set, the thread that will use it must enable it.
class Ring {
  public:
    /// A ring that has been seen to work, in the best mode that the kernel grants.
    /// Errors: io_backend_unavailable, with the reason and a hint.
    static Result<std::unique_ptr<Ring>> create(unsigned depth, const RingSetup& setup);
    Ring() = default;
    Ring(const Ring&) = delete;
    Ring& operator=(const Ring&) = delete;
    ~Ring();
    /// Binds a deferred ring to the calling thread.
    void enable();

    io_uring ring{};
    /// "SINGLE_ISSUER|DEFER_TASKRUN", ...
    std::string mode;
    bool deferred = false;

  private:
    bool open_ = false;
};

} // namespace safering
