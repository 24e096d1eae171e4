// A test program that the runner ends because it hangs says first where each of its threads stands: frames as
// "program(+offset)", for addr2line on the same build.
#include <array>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>

#include <dirent.h>
#include <execinfo.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

const pid_t process = ::getpid();
std::atomic<bool> told{false};

void tell(const char* text, std::size_t length) {
    [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text, length);
}

void tell_frames(int) {
    std::array<void*, 48> frames;
    ::backtrace_symbols_fd(frames.data(), ::backtrace(frames.data(), frames.size()), STDERR_FILENO);
    told = true;
}

// One after the other, by a signal that the threads of the library do not block.
void tell_threads(int signal) {
    ::signal(signal, SIG_DFL);
    DIR* tasks = ::getpid() == process ? ::opendir("/proc/self/task") : nullptr;
    while (const dirent* task = tasks != nullptr ? ::readdir(tasks) : nullptr) {
        const int thread = std::atoi(task->d_name);
        if (thread == 0)
            continue;
        std::array<char, 32> line;
        const int length = std::snprintf(line.data(), line.size(), "thread %d:\n", thread);
        tell(line.data(), static_cast<std::size_t>(length));
        told = false;
        ::syscall(SYS_tgkill, process, thread, SIGSYS);
        for (int i = 0; i < 20 && !told; ++i) {
            const timespec pause{.tv_sec = 0, .tv_nsec = 1'000'000};
            ::nanosleep(&pause, nullptr);
        }
    }
    ::raise(signal);
}

[[maybe_unused]] const bool installed = [] {
    std::array<void*, 1> frame;
    ::backtrace(frame.data(), frame.size()); // loads what it needs, which a handler must not
    ::signal(SIGSYS, tell_frames);
    ::signal(SIGTERM, tell_threads);
    return true;
}();

} // namespace
