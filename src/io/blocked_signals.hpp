// Threads inherit the mask of the thread that creates them.
#pragma once

#include <csignal>

namespace safering {

/// While it lives, threads that this thread creates take no signal that is sent to the process: a
/// host that waits for its signals (sigwait, signalfd) or handles them on a thread of its choice
/// would lose those that the kernel gives to ours. Signals of a thread's own faults stay open, so
/// that a host's crash handler sees them.
class BlockedSignals {
  public:
    BlockedSignals() {
        sigset_t all;
        ::sigfillset(&all);
        for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT})
            ::sigdelset(&all, fault);
        ::pthread_sigmask(SIG_BLOCK, &all, &before_);
    }
    BlockedSignals(const BlockedSignals&) = delete;
    BlockedSignals& operator=(const BlockedSignals&) = delete;
    ~BlockedSignals() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

  private:
    sigset_t before_;
};

} // namespace safering
