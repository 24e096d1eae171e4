#include "advice.hpp"

#include <fstream>

#include <fmt/format.h>
#include <sys/resource.h>

#include "text.hpp"

namespace safering::tools {

namespace {

std::optional<std::uint64_t> soft_limit(__rlimit_resource resource) {
    rlimit limit{};
    if (getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
        return std::nullopt;
    return limit.rlim_cur;
}

std::string backend_advice(const Machine& machine) {
    if (machine.io_uring_disabled.value_or(0) != 0)
        return fmt::format(
            "io_uring is switched off (kernel.io_uring_disabled = {}); as root on the host: sysctl "
            "-w kernel.io_uring_disabled=0, and the same line in /etc/sysctl.d/ to keep it",
            *machine.io_uring_disabled);
    return fmt::format(
        "io_uring is refused ({}); in a container that is the seccomp profile: allow "
        "io_uring_setup, "
        "io_uring_enter and io_uring_register in it (docker run --security-opt "
        "seccomp=profile.json; to try: seccomp=unconfined); threads are used meanwhile",
        machine.reactor.reason);
}

} // namespace

void read_limits(Machine& machine) {
    if (std::ifstream file("/proc/sys/kernel/io_uring_disabled"); file) {
        int value = 0;
        if (file >> value)
            machine.io_uring_disabled = value;
    }
    machine.memlock_bytes = soft_limit(RLIMIT_MEMLOCK);
    machine.open_files = soft_limit(RLIMIT_NOFILE).value_or(~std::uint64_t{0});
}

std::vector<std::string> advise(const Machine& machine) {
    std::vector<std::string> out;
    if (machine.reactor.backend != BackendKind::io_uring && !machine.backend_was_chosen)
        out.push_back(backend_advice(machine));
    // Before 5.12 a ring was charged to it, and pinned memory of devices still is.
    constexpr std::uint64_t least_memlock = std::uint64_t{8} << 20;
    if (machine.memlock_bytes && *machine.memlock_bytes < least_memlock)
        out.push_back(fmt::format("memory that may be locked is {}; raise it to 8 MiB or more: "
                                  "ulimit -l 8192, docker run --ulimit memlock=8388608, or "
                                  "LimitMEMLOCK=8M in the unit",
                                  format_bytes(*machine.memlock_bytes)));
    constexpr std::uint64_t least_open_files = 4096;
    if (machine.open_files < least_open_files)
        out.push_back(fmt::format("{} files may be open at a time, and a checkpoint's are open "
                                  "together, two descriptors each; for large ones: ulimit -n {}",
                                  machine.open_files, least_open_files));
    if (!machine.file_system.direct)
        out.push_back(fmt::format(
            "{} refuses O_DIRECT, so all goes through the page cache; save to "
            "ext4 or xfs where speed matters{}",
            machine.file_system.type,
            machine.file_system.type == "tmpfs"       ? ", and nothing on tmpfs survives a restart"
            : machine.file_system.type == "overlayfs" ? " (a volume, not the container's own layer)"
                                                      : ""));
    else if (!machine.file_system.allocate)
        out.push_back(fmt::format("{} refuses fallocate: a full disk shows only while writing; "
                                  "leave room for one more checkpoint",
                                  machine.file_system.type));
    if (!machine.huge_pages.granted)
        out.push_back(
            machine.huge_pages.setting == "never"
                ? "transparent huge pages are off, which halves direct I/O; as root: echo madvise "
                  "> "
                  "/sys/kernel/mm/transparent_hugepage/enabled"
                : "the kernel had no huge page to give, which halves direct I/O; as root: echo 1 > "
                  "/proc/sys/vm/compact_memory");
    return out;
}

} // namespace safering::tools
