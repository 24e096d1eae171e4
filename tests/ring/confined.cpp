// Runs a program as a container would: io_uring refused by seccomp, or next to no memory that may be locked.
//
//   confined no-io-uring|little-memlock PROGRAM ARGUMENTS...
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <string_view>

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

constexpr int wrong_use = 2;

// EPERM, as Docker's default profile answers.
bool refuse_io_uring() {
    sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, SYS_io_uring_setup, 0, 2),
        BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, SYS_io_uring_register, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 1 /* EPERM */),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const sock_fprog filter{.len = sizeof program / sizeof *program, .filter = program};
    return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

bool refuse_locked_memory() {
    const rlimit limit{.rlim_cur = 4096, .rlim_max = 4096};
    return ::setrlimit(RLIMIT_MEMLOCK, &limit) == 0;
}

} // namespace

int main(int count, char** arguments) {
    const std::string_view how = count < 3 ? "" : arguments[1];
    const bool confined = how == "no-io-uring"      ? refuse_io_uring()
                          : how == "little-memlock" ? refuse_locked_memory()
                                                    : false;
    if (!confined) {
        std::perror("confined no-io-uring|little-memlock PROGRAM ARGUMENTS...");
        return wrong_use;
    }
    ::execv(arguments[2], arguments + 2);
    std::perror(arguments[2]);
    return wrong_use;
}
