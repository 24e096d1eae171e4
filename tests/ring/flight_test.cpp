// What is in flight when something else happens: a queue that is full, an end, a fork, signals.
#include <atomic>
#include <csignal>
#include <cstring>
#include <future>
#include <map>
#include <set>
#include <thread>

#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "../checkpoint/model.hpp"
#include "../io/backends.hpp"
#include "guarded_memory.hpp"
#include "io/threads_backend.hpp"
#include "io/uring_backend.hpp"
#include "late_backend.hpp"

namespace safering::test {
namespace {

constexpr std::size_t small_buffer = std::size_t{8} << 10;

class FlightTest : public testing::TestWithParam<BackendKind> {
  protected:
    void SetUp() override {
        auto reactor = Reactor::create(options());
        if (!reactor)
            GTEST_SKIP() << reactor.error().message();
        reactor_ = std::move(*reactor);
        value_or_throw(save(odd_model(1), {1, 0}, target(), {}, {reactor_}));
    }
    ReactorOptions options(unsigned depth = 8) const {
        return {.backend = GetParam() == BackendKind::io_uring ? BackendChoice::io_uring
                                                               : BackendChoice::threads,
                .queue_depth = depth,
                .buffer_bytes = small_buffer,
                .buffer_count = 3};
    }
    /// On a backend that the test can hold.
    std::shared_ptr<Reactor> make_late(LateBackend*& late) const {
        auto context = std::make_unique<boost::asio::io_context>(1);
        boost::asio::io_context& used = *context;
        auto backend = GetParam() == BackendKind::io_uring
                           ? value_or_throw(make_uring_backend(options(), used))
                           : make_threads_backend(options(), "a test");
        auto wrapped = std::make_unique<LateBackend>(std::move(backend));
        late = wrapped.get();
        return make_reactor(std::move(wrapped), options(), std::move(context), used);
    }
    std::string target() const { return directory_ / "step"; }
    std::set<std::string> names() const {
        std::set<std::string> names;
        for (const auto& entry : std::filesystem::directory_iterator(directory_.path()))
            names.insert(entry.path().filename());
        return names;
    }

    TemporaryDirectory directory_;
    std::shared_ptr<Reactor> reactor_;
};

INSTANTIATE_TEST_SUITE_P(Backends, FlightTest,
                         testing::Values(BackendKind::io_uring, BackendKind::threads),
                         [](const auto& tested) { return std::string(name(tested.param)); });

TEST_P(FlightTest, AFullQueueOnlyTakesLonger) {
    for (const unsigned depth : {1, 2, 3}) {
        const std::shared_ptr<Reactor> reactor = value_or_throw(Reactor::create(options(depth)));
        for (const std::size_t dimension : {0, 1}) {
            const auto saved = save(odd_model(depth), {3, dimension}, target(), {}, {reactor});
            ASSERT_TRUE(saved) << saved.error().message();
            EXPECT_EQ(differences(odd_model(depth), {2, dimension}, target(), reactor), "");
        }
    }
}

// Hands out each view once and keeps nothing of it: what happens to the memory is up to the job.
class GivenAway final : public SavePlanner, public LoadPlanner {
  public:
    void add(const std::string& name, MutableTensorView view) {
        views_.emplace(name, std::move(view));
    }

    Result<TensorView> resolve_data(const WriteItem& item) override {
        MutableTensorView view = std::move(views_.extract(item.fqn.str()).mapped());
        return TensorView{.data = view.data,
                          .dtype = view.dtype,
                          .shape = view.shape,
                          .strides = {},
                          .owner = std::move(view.owner)};
    }
    Result<MutableTensorView> resolve_tensor(const ReadItem& item) override {
        return std::move(views_.extract(item.fqn.str()).mapped());
    }

  private:
    std::map<std::string, MutableTensorView> views_;
};

// A rank's save or load whose transfers wait, on memory that only its job keeps.
struct Held {
    GuardedMemory memory;
    GivenAway planner;
    LateBackend* late = nullptr;
    std::shared_ptr<Reactor> reactor;
    std::unique_ptr<HuggingFaceStorageWriter> writer;
    std::unique_ptr<HuggingFaceStorageReader> reader;
    std::future<WriteResults> written;
    std::future<LoadReport> read;
    Metadata metadata;

    MutableTensorView view(const TestTensor& tensor) {
        auto bytes = memory.allocate(tensor.bytes.size());
        std::memcpy(bytes.get(), tensor.bytes.data(), tensor.bytes.size());
        std::byte* const data = bytes.get();
        return {.data = data,
                .dtype = tensor.dtype,
                .shape = tensor.shape,
                .strides = {},
                .owner = std::move(bytes)};
    }
    void wait_for_transfers(std::size_t count) const {
        while (late->waiting() < count)
            std::this_thread::yield();
    }
    void save(const std::string& target) {
        std::vector<LocalTensor> tensors;
        for (const TestTensor& tensor : odd_model(2)) {
            planner.add(tensor.name, view(tensor));
            tensors.push_back(
                {.fqn = tensor.name,
                 .data = {.data = nullptr, .dtype = tensor.dtype, .shape = tensor.shape}});
        }
        auto global = value_or_throw(
            create_global_plan({DefaultSavePlanner(tensors, 0).create_local_plan()}));
        metadata = std::move(global.metadata);
        writer = std::make_unique<HuggingFaceStorageWriter>(target, WriterOptions{}, reactor);
        late->hold();
        const auto plans = value_or_throw(writer->prepare_global_plan(std::move(global.plans)));
        written = writer->write_data(plans[0], planner);
        wait_for_transfers(2); // the head of the file, and data
    }
    void load(const std::string& target) {
        reader = std::make_unique<HuggingFaceStorageReader>(target, ReaderOptions{}, reactor);
        metadata = value_or_throw(reader->read_metadata());
        std::vector<LocalDestination> destinations;
        for (const TestTensor& tensor : odd_model(2)) {
            MutableTensorView destination = view(tensor);
            destinations.push_back(
                {.fqn = tensor.name,
                 .data = {.data = destination.data, .dtype = tensor.dtype, .shape = tensor.shape}});
            planner.add(tensor.name, std::move(destination));
        }
        const LoadPlan plan =
            value_or_throw(DefaultLoadPlanner(destinations).create_local_plan(metadata));
        late->hold();
        read = reader->async_read_data(plan, planner);
        wait_for_transfers(1);
    }
};

// The guard must find what it is for: a kernel that writes to memory given back.
TEST_P(FlightTest, TheGuardFindsALateWrite) {
    LateBackend* late = nullptr;
    const std::shared_ptr<Reactor> reactor = make_late(late);
    for (const Caching caching : {Caching::buffered, Caching::direct}) {
        GuardedMemory memory;
        auto bytes = memory.allocate(4096);
        const auto opened = reactor->wait({.op = Opcode::open,
                                           .mode = OpenMode::read,
                                           .caching = caching,
                                           .path = target() + "/model-00001-of-00001.safetensors"});
        ASSERT_FALSE(opened.error);
        late->hold();
        auto read = reactor->async_perform({.op = Opcode::read,
                                            .file = static_cast<int>(opened.result),
                                            .data = bytes.get(),
                                            .length = 4096});
        while (late->waiting() == 0)
            std::this_thread::yield();
        bytes.reset(); // the bug
        late->let_go();
        bool seen = false;
        try {
            (void)read.get();
        } catch (const boost::system::system_error& error) {
            seen = error.code().value() == EFAULT;
        }
        EXPECT_TRUE(seen || !memory.intact());
        reactor->wait({.op = Opcode::close, .file = static_cast<int>(opened.result)});
    }
}

TEST_P(FlightTest, DroppedFuturesFreeNothingTooEarly) {
    Held saving, loading;
    saving.reactor = make_late(saving.late);
    loading.reactor = make_late(loading.late);
    saving.save(target());
    loading.load(target());
    for (Held* held : {&saving, &loading}) {
        held->written = {};
        held->read = {};
        EXPECT_EQ(held->memory.in_use(), 3u);
        held->late->let_go();
        held->writer.reset(); // waits
        held->reader.reset();
        EXPECT_EQ(held->memory.in_use(), 0u);
        held->reactor.reset();
        EXPECT_TRUE(held->memory.intact());
    }
    EXPECT_EQ(differences(odd_model(1), {1, 0}, target(), reactor_), "");
    EXPECT_EQ(names(), std::set<std::string>{"step"});
}

TEST_P(FlightTest, CanceledOnesFreeNothingTooEarly) {
    Held saving, loading;
    saving.reactor = make_late(saving.late);
    loading.reactor = make_late(loading.late);
    saving.save(target());
    loading.load(target());
    saving.writer->cancel();
    loading.reader->cancel();
    EXPECT_EQ(saving.memory.in_use(), 3u);
    EXPECT_EQ(loading.memory.in_use(), 3u);
    saving.late->let_go();
    loading.late->let_go();
    EXPECT_THROW((void)saving.written.get(), Exception);
    EXPECT_THROW((void)loading.read.get(), Exception);
    EXPECT_EQ(saving.memory.in_use() + loading.memory.in_use(), 0u);
    EXPECT_TRUE(saving.memory.intact());
    EXPECT_TRUE(loading.memory.intact());
}

TEST_P(FlightTest, DestructionWaitsForWhatIsInFlight) {
    Held saving;
    saving.reactor = make_late(saving.late);
    saving.save(target());
    std::atomic<bool> gone = false;
    std::thread destroyer([&] {
        saving.writer.reset();
        saving.reactor.reset();
        gone = true;
    });
    ::usleep(20'000); // long enough to go on too early
    EXPECT_FALSE(gone);
    EXPECT_EQ(saving.memory.in_use(), 3u);
    saving.late->let_go();
    destroyer.join();
    (void)saving.written.get(); // nothing failed
    EXPECT_TRUE(saving.memory.intact());
    EXPECT_EQ(differences(odd_model(1), {1, 0}, target(), reactor_), "");
    EXPECT_EQ(names(), std::set<std::string>{"step"}); // the attempt is gone
}

TEST_P(FlightTest, AForkTouchesNothingInFlight) {
    Held saving;
    saving.reactor = make_late(saving.late);
    saving.save(target());
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) { // gives all of it up, and would hang for want of the threads
        ::alarm(60);
        const bool refused = saving.reactor->wait({.op = Opcode::stat, .path = "/"}).error ==
                             std::error_code(Errc::io_forked);
        saving.written = {};
        saving.writer.reset();
        saving.reactor.reset();
        ::_exit(refused ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "status " << status;
    saving.late->let_go();
    std::vector<WriteResults> results;
    results.push_back(saving.written.get());
    const auto finished = saving.writer->finish(saving.metadata, std::move(results));
    ASSERT_TRUE(finished) << finished.error().message();
    EXPECT_EQ(differences(odd_model(2), {1, 0}, target(), reactor_), "");
}

void ignore_signal(int) {}

// Handlers without SA_RESTART: every call that can be interrupted is.
TEST_P(FlightTest, SignalsDisturbNothing) {
    struct sigaction action{}, old_usr{}, old_alarm{};
    action.sa_handler = ignore_signal;
    ASSERT_EQ(::sigaction(SIGUSR1, &action, &old_usr), 0);
    ASSERT_EQ(::sigaction(SIGALRM, &action, &old_alarm), 0);
    std::atomic<bool> over = false;
    std::atomic<std::uint64_t> sent = 0;
    std::thread storm([&, target = ::pthread_self()] {
        while (!over) {
            ::pthread_kill(target, SIGUSR1);
            ::kill(::getpid(), SIGALRM);
            ++sent;
            ::usleep(50);
        }
    });
    for (std::uint64_t round = 0; round < 4 || sent < 100; ++round) {
        const auto saved =
            save(odd_model(round), {2, round % 2}, target(), {}, {reactor_, reactor_});
        EXPECT_TRUE(saved) << saved.error().message();
        EXPECT_EQ(differences(odd_model(round), {2, round % 2}, target(), reactor_), "");
    }
    over = true;
    storm.join();
    ::sigaction(SIGUSR1, &old_usr, nullptr);
    ::sigaction(SIGALRM, &old_alarm, nullptr);
}

} // namespace
} // namespace safering::test
