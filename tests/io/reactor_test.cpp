// What does not depend on the backend: its choice, forks, misuse.
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <fstream>
#include <functional>
#include <future>
#include <thread>

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../descriptors.hpp"
#include "backends.hpp"
#include "io/buffer_pool.hpp"
#include "io/posix_ops.hpp"
#include "io/simulated_disk.hpp"
#include "io/uring_backend.hpp"

namespace safering::test {

namespace {

// Exit status of `child` run in a forked process.
template <typename Function>
int in_child(Function child) {
    const pid_t process = ::fork();
    if (process == 0)
        ::_exit(child());
    int status = 0;
    EXPECT_EQ(::waitpid(process, &status, 0), process);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void expect_forked(Reactor& reactor, std::unique_ptr<Reactor>& owner, const std::string& path) {
    EXPECT_EQ(in_child([&] {
                  if (reactor.wait({.op = Opcode::stat, .path = path}).error !=
                      make_error_code(Errc::io_forked))
                      return 1;
                  bool called = false;
                  reactor.submit({.op = Opcode::stat, .path = path}, [&](Completion completion) {
                      called = completion.error == make_error_code(Errc::io_forked);
                  });
                  if (!called)
                      return 2;
                  try {
                      reactor.async_perform({.op = Opcode::stat, .path = path}).get();
                      return 3;
                  } catch (const boost::system::system_error& error) {
                      if (std::error_code(error.code()) != make_error_code(Errc::io_forked))
                          return 4;
                  }
                  if (reactor.file_system(path))
                      return 5;
                  owner.reset();
                  return 0;
              }),
              0);
    EXPECT_FALSE(reactor.wait({.op = Opcode::stat, .path = path}).error) << "the parent goes on";
}

TEST(ReactorFork, ChildrenAreRefusedAndDoNotHang) {
    const TemporaryDirectory directory;
    for (const BackendChoice choice : {BackendChoice::io_uring, BackendChoice::threads}) {
        auto reactor = value_or_throw(Reactor::create({.backend = choice}));
        ASSERT_FALSE(reactor->wait({.op = Opcode::stat, .path = directory.path()}).error);
        expect_forked(*reactor, reactor, directory.path());
    }
    const auto disk = std::make_shared<SimulatedDisk>();
    disk->make_directory("d");
    auto reactor = make_simulated_reactor(disk);
    expect_forked(*reactor, reactor, "d");
}

std::string refusal(int error) {
    boost::asio::io_context context;
    const auto backend = make_uring_backend(
        {}, context, [=](unsigned, io_uring*, io_uring_params*) { return -error; });
    EXPECT_FALSE(backend);
    EXPECT_EQ(backend.error().code, make_error_code(Errc::io_backend_unavailable));
    return backend.error().detail;
}

// A worker of the kernel that ends an operation gives the loop a second thing to do, without a completion, where the
// loop was quick to take the first. It rings once for what nobody has looked at: who hears that and does not look is
// not told of anything again.
TEST(Ring, RingsForTheNextWhateverTheKernelHadToDoForTheLast) {
    const auto made = Reactor::create({.backend = BackendChoice::io_uring});
    if (!made)
        GTEST_SKIP() << made.error().message();
    Reactor& reactor = **made;
    const int file = ::memfd_create("synced", MFD_CLOEXEC);
    ASSERT_GE(file, 0);
    std::atomic<bool> ended = false;
    std::atomic<int> busy = 0;
    const std::function<void(Completion)> again = [&](const Completion&) {
        if (!ended)
            return reactor.submit({.op = Opcode::stat, .path = "/"}, again);
        --busy;
        busy.notify_one();
    };
    for (int i = 0; i < 2000; ++i) {
        // While the loop has much to do it looks all the time, and then not at all.
        ended = false;
        busy = 3;
        for (int k = 0; k < 3; ++k)
            again({});
        reactor.submit({.op = Opcode::fsync, .file = file}, [&](Completion) { ended = true; });
        for (int some = busy; some > 0; some = busy)
            busy.wait(some);
        std::promise<void> next;
        reactor.submit({.op = Opcode::fsync, .file = file}, [&](Completion) { next.set_value(); });
        auto heard = next.get_future();
        const bool rang = heard.wait_for(std::chrono::seconds(20)) == std::future_status::ready;
        EXPECT_TRUE(rang) << "in round " << i;
        if (!rang) { // another turn of the loop finds it
            (void)reactor.wait({.op = Opcode::stat, .path = "/"});
            heard.wait();
            break;
        }
    }
    reactor.close(file);
}

TEST(RingSetup, RefusalsSayWhyAndWhatToDo) {
    EXPECT_TRUE(refusal(EPERM).contains("Operation not permitted")) << refusal(EPERM);
    EXPECT_TRUE(refusal(ENOSYS).contains("Function not implemented")) << refusal(ENOSYS);
    EXPECT_TRUE(refusal(ENOMEM).contains("Cannot allocate memory")) << refusal(ENOMEM);
    EXPECT_TRUE(refusal(EMFILE).contains("Too many open files")) << refusal(EMFILE);
    std::ifstream file("/proc/sys/kernel/io_uring_disabled");
    if (int disabled = 0; file >> disabled && disabled != 0)
        GTEST_SKIP() << "io_uring is disabled here, which is the hint for every refusal";
    EXPECT_TRUE(refusal(EPERM).contains("seccomp"));
    EXPECT_TRUE(refusal(ENOSYS).contains("gVisor"));
    EXPECT_TRUE(refusal(ENOMEM).contains("RLIMIT_MEMLOCK"));
    EXPECT_TRUE(refusal(EMFILE).contains("RLIMIT_NOFILE"));
}

// The modes for older kernels, by a stand-in for a kernel that does not know the better flags.
TEST(RingSetup, OlderKernelsGetLesserModesThatWork) {
    const TemporaryDirectory directory;
    for (const unsigned unknown :
         {unsigned{IORING_SETUP_DEFER_TASKRUN},
          unsigned{IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN}}) {
        auto context = std::make_unique<boost::asio::io_context>(1);
        boost::asio::io_context& used = *context;
        auto backend = value_or_throw(make_uring_backend(
            {}, used, [=](unsigned entries, io_uring* ring, io_uring_params* params) {
                return (params->flags & unknown) != 0
                           ? -EINVAL
                           : io_uring_queue_init_params(entries, ring, params);
            }));
        const auto reactor = make_reactor(std::move(backend), {}, std::move(context), used);
        EXPECT_EQ(reactor->info().reason,
                  (unknown & IORING_SETUP_COOP_TASKRUN) != 0 ? "no flags" : "COOP_TASKRUN");
        const std::string path = directory / reactor->info().reason;
        const auto file = static_cast<int>(reactor
                                               ->wait({.op = Opcode::open,
                                                       .mode = OpenMode::create,
                                                       .caching = Caching::direct,
                                                       .path = path})
                                               .result);
        const Block block(4096);
        std::vector<Request> writes(
            100, {.op = Opcode::write, .file = file, .data = block.data(), .length = 4096});
        for (const Completion& completion : reactor->wait_all(writes))
            EXPECT_FALSE(completion.error);
        EXPECT_FALSE(reactor->wait({.op = Opcode::fsync, .file = file}).error);
        EXPECT_FALSE(reactor->wait({.op = Opcode::close, .file = file}).error);
    }
}

#if defined(__SANITIZE_THREAD__)
#define SAFERING_TEST_NO_THREADS_IN_CHILDREN 1
#endif

TEST(ReactorChoice, SeccompRefusalFallsBackToThreads) {
#ifdef SAFERING_TEST_NO_THREADS_IN_CHILDREN
    GTEST_SKIP() << "ThreadSanitizer allows no new threads in a forked child";
#endif
    const TemporaryDirectory directory;
    EXPECT_EQ(
        in_child([&] {
            sock_filter code[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
                                  BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
                                  BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
                                  BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
            const sock_fprog program{.len = 4, .filter = code};
            if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
                ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
                return 1;
            if (Reactor::create({.backend = BackendChoice::io_uring}))
                return 2;
            const auto reactor = value_or_throw(Reactor::create());
            const ReactorInfo info = reactor->info();
            if (info.backend != BackendKind::threads ||
                !info.reason.contains("Operation not permitted"))
                return 3;
            return reactor->wait({.op = Opcode::stat, .path = directory.path()}).error ? 4 : 0;
        }),
        0);
}

TEST(ReactorChoice, SaysWhatRuns) {
    const auto ring = value_or_throw(
        Reactor::create({.backend = BackendChoice::io_uring, .queue_depth = 1'000'000'000}));
    EXPECT_FALSE(ring->info().reason.empty());
    EXPECT_LE(ring->info().queue_depth, 65536u);
    EXPECT_FALSE(ring->info().huge_pages);
    const auto threads = value_or_throw(Reactor::create({.backend = BackendChoice::threads}));
    EXPECT_EQ(threads->info().reason, "asked for");
    EXPECT_EQ(name(threads->info().backend), "threads");
}

TEST(ReactorChoice, OptionsThatCannotWorkAreErrors) {
    const auto refused = [](const ReactorOptions& options) {
        const auto reactor = Reactor::create(options);
        boost::asio::io_context context;
        const auto embedded = Reactor::create(context, options);
        EXPECT_EQ(reactor.error().code, std::errc::invalid_argument);
        EXPECT_EQ(embedded.error().code, std::errc::invalid_argument);
        return reactor.error().detail;
    };
    EXPECT_TRUE(refused({.queue_depth = 0}).contains("queue_depth"));
    EXPECT_TRUE(refused({.threads = 0}).contains("threads"));
    EXPECT_TRUE(refused({.buffer_bytes = 0}).contains("buffer_bytes"));
    EXPECT_TRUE(refused({.buffer_bytes = 4097}).contains("4097"));
    EXPECT_TRUE(refused({.buffer_count = 0}).contains("buffer_count"));
    EXPECT_TRUE(refused({.transfer_bytes = 4095}).contains("4095"));
}

// With room for 0, 1, 2, ... more descriptors: an Error or a reactor, nothing thrown, none leaked.
TEST(ReactorChoice, RunningOutOfDescriptorsIsAnError) {
#ifdef __SANITIZE_ADDRESS__
    GTEST_SKIP() << "the sanitizer opens a pipe to check a vptr, and reports what it cannot check";
#endif
    rlimit before{};
    ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
    const std::int64_t held = open_descriptors();
    const int next = ::dup(STDERR_FILENO); // the lowest that is free
    ::close(next);
    int created = 0, errors = 0, threads = 0;
    for (unsigned room = 0; room < 12; ++room) {
        rlimit few = before;
        few.rlim_cur = static_cast<rlim_t>(next) + room;
        ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &few), 0);
        auto reactor = Reactor::create();
        if (reactor) {
            ++created;
            threads += (*reactor)->info().backend == BackendKind::threads ? 1 : 0;
            EXPECT_EQ((*reactor)->wait({.op = Opcode::stat, .path = "/"}).error, std::error_code{});
        } else {
            ++errors;
            EXPECT_EQ(reactor.error().code, std::errc::too_many_files_open)
                << reactor.error().message();
        }
        reactor = nullptr;
        ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
        EXPECT_EQ(open_descriptors(), held) << "room for " << room;
    }
    EXPECT_GT(created, threads);
    EXPECT_GT(threads, 0);
    EXPECT_GT(errors, 0);
}

bool blocks(std::uint64_t mask, int signal) {
    return ((mask >> (signal - 1)) & 1) != 0;
}

// The signals that the other threads of this process block, by /proc.
std::vector<std::uint64_t> masks_of_other_threads() {
    const std::string self = std::to_string(::syscall(SYS_gettid));
    std::vector<std::uint64_t> masks;
    for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
        std::ifstream status(task.path() / "status");
        std::string line;
        // The kernel lists its own workers for a ring here, which take no signals at all.
        if (task.path().filename() == self || !std::getline(status, line) || line.contains("iou-"))
            continue;
        while (std::getline(status, line))
            if (line.starts_with("SigBlk:"))
                masks.push_back(std::stoull(line.substr(7), nullptr, 16));
    }
    return masks;
}

TEST(ReactorChoice, LibraryThreadsLeaveTheHostsSignalsAlone) {
#if defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "TSan has a thread of its own, which takes signals";
#endif
    const auto reactor = value_or_throw(Reactor::create());
    // Until it first runs, a new thread blocks everything.
    std::vector<std::uint64_t> masks;
    for (int i = 0; i < 1000; ++i) {
        masks = masks_of_other_threads();
        if (std::ranges::none_of(masks, [](std::uint64_t mask) { return blocks(mask, SIGSEGV); }))
            break;
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    EXPECT_GE(masks.size(), 3u) << "the reactor's own and two more";
    for (const std::uint64_t mask : masks) {
        EXPECT_TRUE(blocks(mask, SIGTERM));
        EXPECT_TRUE(blocks(mask, SIGUSR1));
        EXPECT_FALSE(blocks(mask, SIGSEGV));
    }
    sigset_t mine;
    ASSERT_EQ(::pthread_sigmask(SIG_SETMASK, nullptr, &mine), 0);
    EXPECT_EQ(::sigismember(&mine, SIGTERM), 0) << "restored";
}

TEST(ReactorMisuseDeathTest, WaitingOnTheReactorsThreadIsAnAssertion) {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    EXPECT_DEATH(
        {
            const auto reactor =
                value_or_throw(Reactor::create({.backend = BackendChoice::threads}));
            std::promise<void> never;
            reactor->submit({.op = Opcode::stat, .path = "/"},
                            [&](Completion) { reactor->wait({.op = Opcode::stat, .path = "/"}); });
            never.get_future().wait();
        },
        "running_in_this_thread");
}

// Wakes the loop without end, from a thread of its own, and notices a turn that uses it while
// it is being destroyed.
class RestlessBackend final : public Backend {
  public:
    explicit RestlessBackend(std::atomic<int>& late_turns) : late_turns_(late_turns) {}
    ~RestlessBackend() override {
        dying_ = true;
        std::this_thread::sleep_for(std::chrono::microseconds(200));
        restless_ = {};
    }
    void begin(Wake wake) override {
        restless_ = std::jthread([wake = std::move(wake)](const std::stop_token& stop) {
            while (!stop.stop_requested()) {
                wake();
                std::this_thread::yield();
            }
        });
    }
    void start(Operation& operation) override { started_.push_back(operation); }
    void flush() override { note(); }
    void reap(OperationQueue& ended) override {
        note();
        // Long turns, so that destruction meets one.
        std::this_thread::sleep_for(std::chrono::microseconds(20));
        ended.append(started_);
    }
    unsigned capacity() const override { return 8; }
    BackendKind kind() const override { return BackendKind::simulated; }
    const std::string& reason() const override { return reason_; }
    std::uint64_t resume_alignment(int) const override { return 1; }
    void close(int) override {}
    Result<FileSystemInfo> file_system(const std::string&) override { return FileSystemInfo{}; }

  private:
    void note() {
        if (dying_)
            ++late_turns_;
    }
    std::atomic<int>& late_turns_;
    std::atomic<bool> dying_ = false;
    std::string reason_ = "restless";
    OperationQueue started_;
    std::jthread restless_;
};

TEST(ReactorLoop, NoTurnUsesABackendThatIsBeingDestroyed) {
    boost::asio::io_context context(1);
    auto guard = boost::asio::make_work_guard(context);
    std::thread runner([&] { context.run(); });
    std::atomic<int> late_turns = 0;
    for (int round = 0; round < 300; ++round) {
        auto reactor =
            make_reactor(std::make_unique<RestlessBackend>(late_turns), {}, nullptr, context);
        EXPECT_FALSE(reactor->wait({.op = Opcode::fsync}).error);
        reactor.reset();
    }
    guard.reset();
    runner.join();
    EXPECT_EQ(late_turns, 0);
}

TEST(PosixOps, OpeningAFifoDoesNotHang) {
    const TemporaryDirectory directory;
    ASSERT_EQ(::mkfifo((directory / "fifo").c_str(), 0600), 0);
    const auto reactor = value_or_throw(Reactor::create());
    const Completion opened = reactor->wait({.op = Opcode::open, .path = directory / "fifo"});
    ASSERT_FALSE(opened.error);
    EXPECT_EQ(opened.status.kind, FileKind::other);
    reactor->wait({.op = Opcode::close, .file = static_cast<int>(opened.result)});
}

TEST(PosixOps, DirectTransfersMustFitTheBlocksOfThisLibrary) {
    const auto judge = [](unsigned mask, std::uint32_t memory, std::uint32_t offset) {
        struct statx status{};
        status.stx_mask = mask;
        status.stx_dio_mem_align = memory;
        status.stx_dio_offset_align = offset;
        const auto alignment = posix::direct_alignment(status);
        return alignment ? std::pair{alignment->memory, alignment->offset}
                         : std::pair{std::uint32_t{0}, std::uint32_t{0}};
    };
    using Pair = std::pair<std::uint32_t, std::uint32_t>;
    constexpr Pair no{0, 0};
    EXPECT_EQ(judge(STATX_BASIC_STATS, 0, 0), Pair(4096, 4096)) << "the kernel does not say";
    EXPECT_EQ(judge(STATX_DIOALIGN, 4, 512), Pair(4, 512));
    EXPECT_EQ(judge(STATX_DIOALIGN, 4096, 4096), Pair(4096, 4096));
    EXPECT_EQ(judge(STATX_DIOALIGN, 0, 0), no);
    EXPECT_EQ(judge(STATX_DIOALIGN, 4, 8192), no);
    EXPECT_EQ(judge(STATX_DIOALIGN, 65536, 512), no);
}

// tmpfs, where there is one, may refuse O_DIRECT; its buffered descriptors must take any transfer.
TEST(PosixOps, RefusedDirectIsSaid) {
    if (::access("/dev/shm", W_OK) != 0)
        GTEST_SKIP() << "no /dev/shm";
    const auto reactor = value_or_throw(Reactor::create());
    const auto info = reactor->file_system("/dev/shm");
    ASSERT_TRUE(info) << info.error().message();
    const std::string path = "/dev/shm/safering.test." + std::to_string(::getpid());
    const Completion opened = reactor->wait(
        {.op = Opcode::open, .mode = OpenMode::create, .caching = Caching::direct, .path = path});
    ASSERT_FALSE(opened.error);
    EXPECT_EQ(opened.direct, info->direct);
    const int file = static_cast<int>(opened.result);
    EXPECT_FALSE(reactor->wait({.op = Opcode::allocate, .file = file, .length = 10000}).error);
    EXPECT_EQ(reactor->wait({.op = Opcode::stat, .path = path}).status.size, 10000u);
    reactor->wait_all({{.op = Opcode::unlink, .path = path}, {.op = Opcode::close, .file = file}});
}

} // namespace

} // namespace safering::test
