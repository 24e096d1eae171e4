#include "io/ring_setup.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <fstream>

#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io/posix_ops.hpp"

namespace safering {

namespace {

struct Mode {
    unsigned flags;
    const char* name;
};

// Best first; an older kernel answers EINVAL to flags that it does not know. SINGLE_ISSUER binds
// the ring to the thread that enables it, so such rings start disabled.
constexpr std::array modes{
    Mode{IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_R_DISABLED,
         "SINGLE_ISSUER|DEFER_TASKRUN"},
    Mode{IORING_SETUP_COOP_TASKRUN, "COOP_TASKRUN"},
    Mode{0, "no flags"},
};

std::string hint(int error) {
    std::ifstream file("/proc/sys/kernel/io_uring_disabled");
    int disabled = 0;
    if (file >> disabled && disabled != 0)
        return fmt::format("kernel.io_uring_disabled is {}: an administrator can set it to 0 "
                           "(sysctl kernel.io_uring_disabled=0)",
                           disabled);
    switch (error) {
    case EPERM:
    case EACCES:
        return "a seccomp profile refuses it, as Docker's default one does: run the container "
               "with a profile that allows io_uring_setup, io_uring_enter and io_uring_register";
    case ENOSYS: return "the kernel lacks it (before 5.10, built without it, or gVisor)";
    case ENOMEM: {
        rlimit limit{};
        ::getrlimit(RLIMIT_MEMLOCK, &limit);
        return fmt::format("RLIMIT_MEMLOCK is {} KiB: raise it (ulimit -l)", limit.rlim_cur >> 10);
    }
    case EMFILE:
    case ENFILE: return "too many open files: raise RLIMIT_NOFILE (ulimit -n)";
    default: return "";
    }
}

std::unexpected<Error> unavailable(const char* call, int result) {
    const std::error_code error = posix::error_of(result);
    const std::string advice = hint(error.value());
    return fail(
        Errc::io_backend_unavailable, "set up io_uring",
        fmt::format("{}: {}{}{}", call, error.message(), advice.empty() ? "" : "; ", advice));
}

// Some sandboxes grant the set-up and refuse the use: one no-op goes all the way through.
int try_no_op(unsigned flags, const RingSetup& setup) {
    io_uring ring{};
    io_uring_params params{};
    params.flags = flags & ~IORING_SETUP_R_DISABLED;
    if (const int result = setup(2, &ring, &params); result < 0)
        return result;
    io_uring_sqe* entry = io_uring_get_sqe(&ring);
    io_uring_prep_nop(entry);
    io_uring_sqe_set_data64(entry, 0);
    int result = io_uring_submit_and_wait(&ring, 1);
    io_uring_cqe* completion = nullptr;
    if (result >= 0)
        result = io_uring_wait_cqe(&ring, &completion);
    io_uring_queue_exit(&ring);
    return std::min(result, 0);
}

int check_opcodes(io_uring& ring) {
    io_uring_probe* probe = io_uring_get_probe_ring(&ring);
    if (probe == nullptr)
        return -ENOSYS;
    const bool all = io_uring_opcode_supported(probe, IORING_OP_READ) &&
                     io_uring_opcode_supported(probe, IORING_OP_WRITE) &&
                     io_uring_opcode_supported(probe, IORING_OP_FSYNC) &&
                     io_uring_opcode_supported(probe, IORING_OP_FALLOCATE);
    io_uring_free_probe(probe);
    return all ? 0 : -ENOSYS;
}

} // namespace

Ring::~Ring() {
    if (open_)
        io_uring_queue_exit(&ring);
}

// liburing 2.3 declares io_uring_enable_rings() and forgets to export it.
void Ring::enable() {
    const long result =
        ::syscall(__NR_io_uring_register, ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, nullptr, 0);
    SAFERING_ASSERT(result == 0);
}

Result<std::unique_ptr<Ring>> Ring::create(unsigned depth, const RingSetup& setup) {
    // IORING_MAX_ENTRIES; CLAMP alone would not keep 2 * depth from overflowing.
    const unsigned entries = std::min(depth, 32768u);
    int result = -EINVAL;
    for (const Mode& mode : modes) {
        result = try_no_op(mode.flags, setup);
        if (result == -EINVAL)
            continue;
        if (result < 0)
            return unavailable("io_uring_setup", result);
        auto made = std::make_unique<Ring>();
        io_uring_params params{};
        // Twice the depth: the kernel may post a completion before the queue's head has moved on.
        params.flags = mode.flags | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;
        params.cq_entries = 2 * entries;
        result = setup(entries, &made->ring, &params);
        if (result < 0)
            return unavailable("io_uring_setup", result);
        made->open_ = true;
        made->mode = mode.name;
        made->deferred = (mode.flags & IORING_SETUP_DEFER_TASKRUN) != 0;
        if (result = check_opcodes(made->ring); result < 0)
            return unavailable("io_uring_register(PROBE)", result);
        return made;
    }
    return unavailable("io_uring_setup", result);
}

} // namespace safering
