// Four processes save, verify, load, replace and clean up beside each other, and read each other's checkpoints, while
// one operation in a hundred fails. STRESS_SECONDS=n, STRESS_SEED=s.
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include <fmt/format.h>

#include "../checkpoint/model.hpp"
#include "../crash/recovery.hpp"
#include "../descriptors.hpp"
#include "../environment.hpp"
#include "../io/faulty_backend.hpp"
#include "io/threads_backend.hpp"

namespace safering::test {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr unsigned processes = 4;

Model model_of(std::uint64_t seed) {
    return with_seed(seed, {make_tensor("a", Dtype::bf16, {64, 515}, 4 * seed),
                            make_tensor("b", Dtype::u8, {5, 4096}, 4 * seed + 1),
                            make_tensor("c", Dtype::f32, {33}, 4 * seed + 2)});
}

std::size_t entries(const fs::path& directory) {
    return static_cast<std::size_t>(
        std::distance(fs::directory_iterator(directory), fs::directory_iterator()));
}

std::uint64_t resident_bytes() {
    std::ifstream file("/proc/self/statm");
    std::uint64_t total = 0, resident = 0;
    file >> total >> resident;
    return resident * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

// One process's part. What it finds wrong goes to stderr and into the exit code.
class Worker {
  public:
    Worker(fs::path root, unsigned number, std::uint64_t seed)
        : root_(std::move(root)), number_(number), random_(seed * processes + number) {
        const ReactorOptions options{
            .backend = BackendChoice::threads, .buffer_bytes = 16 << 10, .buffer_count = 3};
        auto backend =
            std::make_unique<FaultyBackend>(make_threads_backend(options, "a test"), random_());
        faults_ = backend.get();
        auto context = std::make_unique<boost::asio::io_context>(1);
        boost::asio::io_context& used = *context;
        reactor_ = make_reactor(std::move(backend), options, std::move(context), used);
    }

    int run(Clock::duration time) {
        const auto begun = Clock::now();
        // The first rounds fill caches and pools.
        for (int i = 0; i < 10; ++i)
            round();
        const std::uint64_t memory = resident_bytes();
        const std::int64_t descriptors = open_descriptors();
        faults_->fail_one_in(100);
        while (Clock::now() - begun < time)
            round();
        faults_->fail_one_in(0);
        round();
        // What was begun and is not waited for, as the end of a connection, may take a moment.
        for (int i = 0; i < 1000 && open_descriptors() != descriptors; ++i)
            ::usleep(10'000);
        expect(open_descriptors() == descriptors, "descriptors",
               fmt::format("{}, were {}", open_descriptors(), descriptors));
        constexpr std::uint64_t slack = 16 << 20; // of malloc's arenas
        expect(resident_bytes() < memory + slack, "memory",
               fmt::format("{} bytes, were {}", resident_bytes(), memory));
        expect(whole_ > 0, "saves", "none succeeded");
        fmt::print("process {}: {} saves, {} of them failed, {} loads, {} operations failed\n",
                   number_, whole_ + failed_, failed_, loads_, faults_->failed());
        for (const std::string& note : notes_)
            fmt::print("process {}: the last save: {}\n", number_, note);
        std::fflush(stdout);
        return wrong_ == 0 ? 0 : 1;
    }

  private:
    std::string target(unsigned number) const { return root_ / fmt::format("of-{}", number); }

    void expect(bool good, std::string_view what, const std::string& text) {
        if (good)
            return;
        ++wrong_;
        fmt::print(stderr, "process {}: {}: {}\n", number_, what, text);
    }

    void round() {
        const std::uint64_t next = random_() % 1000;
        WriterOptions options;
        if (random_() % 2 == 0)
            options.layout = FileLayout::sharded;
        const Sharding sharding{static_cast<std::uint32_t>(1 + random_() % 3), random_() % 2};
        const auto saved = save(model_of(next), sharding, target(number_), options, {reactor_});
        ++(saved ? whole_ : failed_);
        if (!saved)
            expect(FaultyBackend::is_injected(saved.error()), "save", saved.error().message());
        possible_.push_back(next);
        if (saved)
            possible_ = {next};
        notes_ = saved ? saved->notes : std::vector{saved.error().message()};
        check_own();
        read(target(random_() % processes), {});
    }

    void check_own() {
        const auto verified = verify_checkpoint(target(number_), *reactor_);
        if (!verified)
            expect(FaultyBackend::is_injected(verified.error()) || whole_ == 0, "verify",
                   verified.error().message());
        else if (std::ranges::none_of(verified->findings, // others follow from it
                                      FaultyBackend::is_injected))
            for (const Error& finding : verified->findings)
                expect(false, "verify", finding.message());
        if (whole_ != 0)
            read(target(number_), possible_);
    }

    void read(const std::string& path, const std::vector<std::uint64_t>& possible) {
        const auto loaded = load_model(path, reactor_);
        ++loads_;
        if (!loaded) {
            // Others' may not have been saved yet.
            const bool absent = loaded.error().code == Errc::checkpoint_not_found;
            expect(FaultyBackend::is_injected(loaded.error()) || (absent && possible.empty()),
                   "load", loaded.error().message());
            return;
        }
        const auto seed = seed_of(*loaded);
        const std::string differs = seed ? difference(model_of(*seed), *loaded) : "no seed";
        expect(differs.empty(), "load", path + ": " + differs);
        expect(possible.empty() || (seed && std::ranges::count(possible, *seed) != 0), "load",
               path + ": another model than was saved last");
    }

    fs::path root_;
    unsigned number_;
    std::mt19937_64 random_;
    FaultyBackend* faults_ = nullptr;
    std::shared_ptr<Reactor> reactor_;
    std::vector<std::uint64_t> possible_;
    std::vector<std::string> notes_; // of the last save
    std::uint64_t whole_ = 0, failed_ = 0, loads_ = 0, wrong_ = 0;
};

TEST(Stress, FourProcessesWithFaultsLoseNothingAndLeaveNothing) {
    if (std::getenv("STRESS_SECONDS") == nullptr)
        GTEST_SKIP() << "takes a while; tools/test --stress runs it";
    const fs::path root = fs::absolute(fmt::format("stress-{}", ::getpid()));
    fs::create_directories(root);
    const std::uint64_t seed = from_environment("STRESS_SEED", 1);
    const std::chrono::seconds time(from_environment("STRESS_SECONDS", 5));
    const std::size_t shared_memory = fs::exists("/dev/shm") ? entries("/dev/shm") : 0;
    std::vector<pid_t> children;
    for (unsigned number = 0; number < processes; ++number) {
        std::fflush(nullptr);
        const pid_t child = ::fork();
        ASSERT_GE(child, 0);
        if (child == 0)
            ::_exit(Worker(root, number, seed).run(time));
        children.push_back(child);
    }
    for (const pid_t child : children) {
        int status = 0;
        ASSERT_EQ(::waitpid(child, &status, 0), child);
        EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0)
            << "status " << status << ", STRESS_SEED=" << seed;
    }
    std::vector<std::string> left;
    for (const auto& entry : fs::recursive_directory_iterator(root))
        if (const std::string name = fs::relative(entry.path(), root); !name.starts_with("of-"))
            left.push_back(name);
    EXPECT_EQ(left, std::vector<std::string>());
    EXPECT_LE(fs::exists("/dev/shm") ? entries("/dev/shm") : 0, shared_memory);
    fs::remove_all(root);
}

} // namespace
} // namespace safering::test
