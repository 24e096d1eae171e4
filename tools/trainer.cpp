// A training run with safering in it, to be copied: several processes, parameters sharded by rows, saves in the
// background, resumption with any number of ranks, the last checkpoints kept, SIGTERM obeyed.
//
//   trainer --dir RUN [--ranks 2] [--steps 1000] [--save-every 100] [--keep 3]
//
// The model is a linear map that learns another one. A row's gradient depends on that row alone, and losses are
// added by row, so a run ends in the same numbers however it was cut up, in time or between ranks.

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <numeric>
#include <vector>

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>

#include <safering/async_saver.hpp>
#include <safering/retention.hpp>
#include <safering/storage_reader.hpp>

#include "socket_ranks.hpp"

namespace {

using namespace safering;
using namespace trainer;

constexpr std::uint32_t rows = 96;
constexpr std::uint32_t columns = 32;
// What a cluster leaves between SIGTERM and SIGKILL, less a margin for the processes to end.
constexpr std::chrono::seconds flush_deadline{20};

struct Arguments {
    std::uint32_t ranks = 2;
    std::uint64_t steps = 1000;
    std::uint64_t save_every = 100;
    std::uint64_t keep = 3;
    std::string directory;
};

template <typename T>
Bytes bytes_of(const std::vector<T>& values) {
    const auto bytes = std::as_bytes(std::span(values));
    return {bytes.begin(), bytes.end()};
}

// Rank 0's bytes on every rank.
Bytes broadcast(Collectives& ranks, const Bytes& message) {
    std::vector<Bytes> parts;
    if (ranks.rank() == 0)
        parts.assign(ranks.ranks(), message);
    return value_or_throw(ranks.scatter(std::move(parts)));
}

// A number in [-1, 1) that depends on the arguments only.
float noise(std::uint64_t series, std::uint64_t index) {
    std::uint64_t x = series * 0x9e3779b97f4a7c15u + index + 1;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return static_cast<float>((x ^ (x >> 31)) >> 40) / 8388608.0f - 1.0f;
}

// A rank's rows of the weight and of its momentum.
class Shard {
  public:
    Shard(std::uint32_t rank, std::uint32_t ranks)
        : begin_(rows * rank / ranks), end_(rows * (rank + 1) / ranks),
          weight_(std::size_t{end_ - begin_} * columns), momentum_(weight_.size()) {}

    // The loss of each row on the batch of `step`, and with a rate above 0 a step down its gradient.
    std::vector<double> learn(std::uint64_t step, float rate) {
        std::vector<double> losses;
        for (std::uint32_t row = begin_; row < end_; ++row) {
            float* weight = &weight_[std::size_t{row - begin_} * columns];
            float* momentum = &momentum_[std::size_t{row - begin_} * columns];
            float error = 0;
            for (std::uint32_t c = 0; c < columns; ++c)
                error += (weight[c] - noise(0, row * columns + c)) * noise(step + 1, c);
            for (std::uint32_t c = 0; rate > 0 && c < columns; ++c) {
                momentum[c] = 0.5f * momentum[c] + error * noise(step + 1, c);
                weight[c] -= rate * momentum[c];
            }
            losses.push_back(double{error} * error);
        }
        return losses;
    }

    std::vector<LocalTensor> tensors() const {
        return {{"weight", view(weight_), {rows, columns}, {begin_, 0}},
                {"momentum", view(momentum_), {rows, columns}, {begin_, 0}}};
    }
    std::vector<LocalDestination> destinations() {
        std::vector<LocalDestination> to;
        for (auto& [name, values] : {std::pair{"weight", &weight_}, {"momentum", &momentum_}})
            to.push_back({name,
                          {reinterpret_cast<std::byte*>(values->data()), Dtype::f32, part()},
                          {rows, columns},
                          {begin_, 0}});
        return to;
    }

  private:
    Shape part() const { return {end_ - begin_, columns}; }
    TensorView view(const std::vector<float>& values) const {
        return {.data = reinterpret_cast<const std::byte*>(values.data()),
                .dtype = Dtype::f32,
                .shape = part()};
    }

    std::uint32_t begin_;
    std::uint32_t end_;
    std::vector<float> weight_;
    std::vector<float> momentum_;
};

volatile std::sig_atomic_t asked_to_stop = 0;

class Run {
  public:
    Run(const Arguments& arguments, std::shared_ptr<Collectives> foreground,
        std::shared_ptr<Collectives> background)
        : arguments_(arguments), ranks_(foreground), reactor_(value_or_throw(Reactor::create())),
          shard_(ranks_->rank(), ranks_->ranks()),
          saver_({.reactor = reactor_, .foreground = foreground, .background = background}) {}

    void train() {
        std::uint64_t step = resume();
        bool stop = false;
        while (step < arguments_.steps && !stop) {
            stop = report(step, shard_.learn(step, 0.05f));
            ++step;
            if (step % arguments_.save_every == 0 || step == arguments_.steps || stop)
                save(step);
            settle(Settle::ended);
        }
        if (stop) {
            const AsyncSaver::Flushed flushed = saver_.emergency_flush(flush_deadline);
            if (ranks_->rank() == 0)
                std::printf("stopped after step %llu, saves given up: %zu\n",
                            static_cast<unsigned long long>(step), flushed.abandoned.size());
        }
        settle(Settle::all);
        // On a batch of its own, so that it tells the parameters apart and not how they were come by.
        const double loss = add(shard_.learn(arguments_.steps + 1'000'000, 0), false).first;
        if (ranks_->rank() == 0)
            std::printf("final step %llu loss %.17g\n", static_cast<unsigned long long>(step),
                        loss);
    }

  private:
    enum class Settle : bool { ended, all };

    // Where the run goes on. One rank looks, so that all see the same.
    std::uint64_t resume() {
        Bytes found;
        if (ranks_->rank() == 0) {
            // What a killed run was saving; nobody else writes there.
            for (const Leftover& leftover :
                 value_or_throw(list_checkpoints(arguments_.directory, *reactor_)).leftovers)
                value_or_throw(recover_checkpoint(arguments_.directory + "/" + leftover.target,
                                                  *reactor_, StaleAttempts::all));
            if (const auto newest =
                    value_or_throw(latest(arguments_.directory, *reactor_, "step"))) {
                found = bytes_of(std::vector<std::uint64_t>{newest->step});
                std::printf("resumed %s on %u ranks\n", newest->name.c_str(), ranks_->ranks());
            }
        }
        found = broadcast(*ranks_, found);
        if (found.empty())
            return 0;
        std::uint64_t step = 0;
        std::memcpy(&step, found.data(), sizeof step);
        HuggingFaceStorageReader reader(path(step), {}, reactor_);
        DefaultLoadPlanner planner(shard_.destinations());
        const LoadPlan plan =
            value_or_throw(planner.create_local_plan(value_or_throw(reader.read_metadata())));
        value_or_throw(reader.read_data(plan, planner));
        return step;
    }

    // The sum over all rows, in their order, and whether a rank was told to stop; the same on all ranks.
    std::pair<double, bool> add(std::vector<double> losses, bool stop) {
        losses.push_back(stop ? 1 : 0);
        double sum[2] = {};
        for (const Bytes& message : value_or_throw(ranks_->gather(bytes_of(losses)))) {
            std::vector<double> values(message.size() / sizeof(double));
            std::memcpy(values.data(), message.data(), message.size());
            sum[1] += values.back();
            sum[0] = std::accumulate(values.begin(), values.end() - 1, sum[0]);
        }
        const Bytes all = broadcast(*ranks_, bytes_of(std::vector<double>(sum, sum + 2)));
        std::memcpy(sum, all.data(), sizeof sum);
        return {sum[0] / rows, sum[1] != 0};
    }

    bool report(std::uint64_t step, std::vector<double> losses) {
        const auto [loss, stop] = add(std::move(losses), asked_to_stop != 0);
        if (ranks_->rank() == 0)
            std::printf("step %llu loss %.17g\n", static_cast<unsigned long long>(step), loss);
        return stop;
    }

    // Copies the shard and returns; the parameters may change at once.
    void save(std::uint64_t step) {
        DefaultSavePlanner planner(shard_.tensors(), ranks_->rank());
        saves_.emplace_back(
            step, value_or_throw(saver_.save(path(step), planner.create_local_plan(), planner)));
    }

    // Looks at saves that have ended; one that failed leaves the run with the checkpoint before it.
    void settle(Settle which) {
        while (!saves_.empty() &&
               (which == Settle::all || saves_.front().second.wait_for(std::chrono::seconds(0)) ==
                                            std::future_status::ready)) {
            auto [step, ended] = std::move(saves_.front());
            saves_.erase(saves_.begin());
            try {
                ended.get();
            } catch (const Exception& exception) {
                if (ranks_->rank() == 0 && exception.code() != Errc::save_superseded)
                    std::fprintf(stderr, "trainer: %s\n", exception.error().message().c_str());
                continue;
            }
            if (ranks_->rank() == 0)
                keep(step);
        }
    }

    void keep(std::uint64_t step) {
        std::printf("saved step-%llu\n", static_cast<unsigned long long>(step));
        value_or_throw(set_latest(path(step), *reactor_));
        const PruneReport pruned = value_or_throw(prune(
            arguments_.directory, *reactor_, {.keep_last = arguments_.keep, .prefix = "step"}));
        for (const Error& failure : pruned.failures)
            std::fprintf(stderr, "trainer: %s\n", failure.message().c_str());
    }

    std::string path(std::uint64_t step) const {
        return arguments_.directory + "/step-" + std::to_string(step);
    }

    const Arguments& arguments_;
    std::shared_ptr<Collectives> ranks_;
    std::shared_ptr<Reactor> reactor_;
    Shard shard_;
    AsyncSaver saver_;
    std::vector<std::pair<std::uint64_t, std::future<SaveReport>>> saves_;
};

int run_rank(const Arguments& arguments, std::shared_ptr<Collectives> foreground,
             std::shared_ptr<Collectives> background) {
    try {
        Run(arguments, std::move(foreground), std::move(background)).train();
    } catch (const Exception& exception) {
        std::fprintf(stderr, "trainer: %s\n", exception.error().message().c_str());
        return 1;
    }
    return 0;
}

std::vector<pid_t> processes;

void stop_ranks(int) {
    asked_to_stop = 1;
    for (const pid_t process : processes)
        if (process != 0)
            ::kill(process, SIGTERM);
}

int run_ranks(const Arguments& arguments) {
    Wires foreground(arguments.ranks);
    Wires background(arguments.ranks);
    sigset_t term;
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    // Until there is somebody to pass it on to.
    ::sigprocmask(SIG_BLOCK, &term, nullptr);
    struct sigaction action{};
    action.sa_handler = stop_ranks;
    action.sa_flags = SA_RESTART;
    ::sigaction(SIGTERM, &action, nullptr);
    const pid_t launcher = ::getpid();
    for (std::uint32_t rank = 0; rank < arguments.ranks; ++rank) {
        const pid_t process = ::fork();
        if (process < 0)
            throw Exception(system_error("start a rank"));
        if (process == 0) {
            processes.clear();
            ::prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (::getppid() != launcher)
                return 1;
            ::sigprocmask(SIG_UNBLOCK, &term, nullptr);
            return run_rank(arguments, foreground.take(rank), background.take(rank));
        }
        processes.push_back(process);
    }
    foreground.close();
    background.close();
    action.sa_flags = 0; // ThreadSanitizer calls a handler when a call ends
    ::sigaction(SIGTERM, &action, nullptr);
    ::sigprocmask(SIG_UNBLOCK, &term, nullptr);
    int worst = 0;
    for (pid_t& process : processes) {
        // Forgotten before its number can be another's.
        siginfo_t info;
        while (::waitid(P_PID, static_cast<id_t>(process), &info, WEXITED | WNOWAIT) != 0 &&
               errno == EINTR)
            ;
        const pid_t ended = std::exchange(process, 0);
        int status = 0;
        if (::waitpid(ended, &status, 0) != ended || status != 0) // it has ended: no signal cuts in
            worst = 1;
    }
    return worst;
}

} // namespace

int main(int argc, char** argv) {
    Arguments arguments;
    CLI::App app("A training run that saves with safering");
    app.add_option("--dir", arguments.directory, "The run's directory")->required();
    app.add_option("--ranks", arguments.ranks, "Processes")->check(CLI::Range(1u, rows));
    app.add_option("--steps", arguments.steps, "Steps from the beginning of the run");
    app.add_option("--save-every", arguments.save_every)->check(CLI::PositiveNumber);
    app.add_option("--keep", arguments.keep, "Checkpoints")->check(CLI::PositiveNumber);
    CLI11_PARSE(app, argc, argv);
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    try {
        std::filesystem::create_directories(arguments.directory);
        return run_ranks(arguments);
    } catch (const std::system_error& error) {
        std::fprintf(stderr, "trainer: %s\n", error.what());
        return 1;
    }
}
