#include "doomed_rank.hpp"

#include <csignal>
#include <cstring>
#include <thread>

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <safering/async_saver.hpp>

#include "../io/answering_backend.hpp"
#include "../ring/late_backend.hpp"
#include "io/threads_backend.hpp"

namespace safering::test {

namespace {

void meet(Fate fate) {
    ::raise(fate == Fate::killed ? SIGKILL : SIGSTOP);
}

// Does not find what lies in an attempt's directory.
class BlindBackend final : public AnsweringBackend {
  public:
    using AnsweringBackend::AnsweringBackend;

    void start(Operation& operation) override {
        const Request& request = operation.request;
        if (request.op != Opcode::open || request.mode != OpenMode::update ||
            request.path.find(".tmp/") == std::string::npos)
            return ForwardingBackend::start(operation);
        fail(operation, std::make_error_code(std::errc::no_such_file_or_directory));
    }
};

class LastOperation final : public ForwardingBackend {
  public:
    LastOperation(std::unique_ptr<Backend> backend, std::uint64_t left, Fate fate)
        : ForwardingBackend(std::move(backend)), left_(left), fate_(fate) {}

    void start(Operation& operation) override {
        if (left_-- == 1)
            meet(fate_);
        ForwardingBackend::start(operation);
    }

  private:
    std::uint64_t left_;
    Fate fate_;
};

// The star, and the moments that lie between its calls.
class DoomedCollectives final : public Collectives {
  public:
    DoomedCollectives(std::shared_ptr<Collectives> real, const Doom* doom, Moment at_gather,
                      LateBackend* late = nullptr)
        : real_(std::move(real)), doom_(doom), at_gather_(at_gather), late_(late) {}

    std::uint32_t rank() const override { return real_->rank(); }
    std::uint32_t ranks() const override { return real_->ranks(); }
    Result<std::vector<trainer::Bytes>> gather(trainer::Bytes own) override {
        pass(at_gather_);
        return real_->gather(std::move(own));
    }
    Result<trainer::Bytes> scatter(std::vector<trainer::Bytes> parts) override {
        auto part = real_->scatter(std::move(parts));
        if (late_ != nullptr)
            late_->hold(); // what comes now is data
        if (at_gather_ == Moment::after_writing)
            pass(Moment::before_writing);
        return part;
    }

  private:
    void pass(Moment moment) {
        if (doom_ != nullptr && doom_->moment == moment && doom_->fate != Fate::blind &&
            !std::exchange(met_, true))
            meet(doom_->fate);
    }
    std::shared_ptr<Collectives> real_;
    const Doom* doom_;
    Moment at_gather_;
    LateBackend* late_;
    bool met_ = false;
};

std::shared_ptr<Reactor> make_reactor_of(const Doom* doom, LateBackend*& late) {
    const ReactorOptions options{
        .backend = BackendChoice::threads, .buffer_bytes = std::size_t{8} << 10, .buffer_count = 3};
    auto context = std::make_unique<boost::asio::io_context>(1);
    boost::asio::io_context& used = *context;
    std::unique_ptr<Backend> backend = make_threads_backend(options, "a test");
    if (doom != nullptr && doom->fate == Fate::blind) {
        backend = std::make_unique<BlindBackend>(std::move(backend));
    } else if (doom != nullptr && doom->moment == Moment::at_operation) {
        backend = std::make_unique<LastOperation>(std::move(backend), doom->operation, doom->fate);
    } else if (doom != nullptr && doom->moment == Moment::while_writing) {
        auto wrapped = std::make_unique<LateBackend>(std::move(backend));
        late = wrapped.get();
        backend = std::move(wrapped);
    }
    return make_reactor(std::move(backend), options, std::move(context), used);
}

// Where one hangs, others lose patience in an order that leaves no doubt whom they wait for: the callers first, then rank
// 0, and last those who wait for rank 0. The shortest is still far more than a step takes; where nobody hangs none comes.
struct Patience {
    trainer::Deadlines deadlines;
    std::chrono::seconds caller;
};

Patience patience_with(const Doom& doom) {
    using std::chrono::seconds;
    if (doom.fate != Fate::stopped)
        return {.deadlines = {seconds(200), seconds(200)}, .caller = seconds(200)};
    return {.deadlines = {seconds(15), seconds(doom.rank == 0 ? 15 : 200)}, .caller = seconds(5)};
}

std::string run_rank(std::uint32_t rank, const std::string& target, const Doom& doom,
                     trainer::Wires& foreground, trainer::Wires& background) {
    const Doom* own = doom.rank == rank ? &doom : nullptr;
    LateBackend* late = nullptr;
    const auto reactor = make_reactor_of(own, late);
    AsyncSaver saver({.writer = {.exchange = doom.exchange},
                      .reactor = reactor,
                      .foreground = std::make_shared<DoomedCollectives>(foreground.take(rank), own,
                                                                        Moment::planning),
                      .background = std::make_shared<DoomedCollectives>(
                          background.take(rank), own, Moment::after_writing, late)});
    const Rank part = cut(odd_model(2), {rank_count, 1}, rank);
    DefaultSavePlanner planner(part.tensors, rank);
    std::jthread in_flight;
    if (late != nullptr) {
        in_flight = std::jthread([late, fate = doom.fate] {
            while (late->waiting() == 0)
                std::this_thread::yield();
            meet(fate);
            late->let_go();
        });
    }
    auto saved = saver.save(target, planner.create_local_plan(), planner);
    if (!saved)
        return saved.error().message();
    // A rank that waits for one that hangs gives up when its time has come.
    if (own == nullptr &&
        saved->wait_for(patience_with(doom).caller) == std::future_status::timeout)
        saver.cancel();
    try {
        (void)saved->get();
        return "saved";
    } catch (const Exception& exception) {
        return exception.error().message();
    }
}

} // namespace

std::vector<RankProcess> begin_doomed_save(const std::string& target, const Doom& doom) {
    const trainer::Deadlines deadlines = patience_with(doom).deadlines;
    trainer::Wires foreground(rank_count, deadlines), background(rank_count, deadlines);
    std::vector<RankProcess> ranks(rank_count);
    for (std::uint32_t rank = 0; rank < rank_count; ++rank) {
        int ends[2];
        if (::pipe2(ends, O_CLOEXEC) != 0)
            throw Exception(trainer::system_error("make a pipe"));
        const pid_t child = ::fork();
        if (child == 0) {
            ::prctl(PR_SET_PDEATHSIG, SIGKILL); // not even a stopped one outlives the test
            std::string text;
            try {
                text = run_rank(rank, target, doom, foreground, background);
            } catch (const std::exception& error) {
                text = std::string("threw ") + error.what();
            }
            const ssize_t wrote = ::write(ends[1], text.data(), text.size());
            ::_exit(wrote == static_cast<ssize_t>(text.size()) ? 0 : 1);
        }
        ::close(ends[1]);
        ranks[rank] = {child, ends[0]};
    }
    foreground.close(); // so that a rank's end is seen
    background.close();
    return ranks;
}

std::string wait_for_end(RankProcess& rank) {
    std::string text;
    char buffer[4096];
    for (;;) {
        const ssize_t got = ::read(rank.says, buffer, sizeof buffer);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        text.append(buffer, static_cast<std::size_t>(got));
    }
    ::close(rank.says);
    int status = 0;
    ::waitpid(rank.process, &status, 0);
    return text;
}

} // namespace safering::test
