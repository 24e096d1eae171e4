#include "try_allocations.hpp"

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <mutex>
#include <optional>
#include <thread>

#include <fmt/format.h>

namespace safering::test {

namespace {

// Ends the process where a run does not end.
class Watch {
  public:
    Watch(std::string name, unsigned seconds)
        : name_(std::move(name)), seconds_(seconds), thread_([this] { watch(); }) {}
    ~Watch() {
        {
            const std::lock_guard lock(mutex_);
            over_ = true;
        }
        changed_.notify_all();
        thread_.join();
    }
    void begin_run(std::uint64_t run) {
        const std::lock_guard lock(mutex_);
        run_ = run;
        ++rounds_;
        changed_.notify_all();
    }

  private:
    void watch() {
        std::unique_lock lock(mutex_);
        while (!over_) {
            const std::uint64_t seen = rounds_;
            if (changed_.wait_for(lock, std::chrono::seconds(seconds_),
                                  [&] { return over_ || rounds_ != seen; }))
                continue;
            std::fprintf(stderr, "hang: %s does not end when allocation %llu fails\n",
                         name_.c_str(), static_cast<unsigned long long>(run_));
            std::_Exit(3);
        }
    }

    std::string name_;
    unsigned seconds_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::uint64_t run_ = 0;
    std::uint64_t rounds_ = 0;
    bool over_ = false;
    std::thread thread_;
};

std::int64_t open_descriptors() {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {});
}

bool says_so(const Error& error) {
    // Another rank's want of memory is told by that one's end.
    return error.code == std::errc::not_enough_memory || error.code == Errc::io_peer_lost;
}

struct Outcome {
    bool failed_one = false;
    bool succeeded = false;
    /// An error that is not what is demanded.
    std::string wrong;
};

Outcome run_once(const AllocationScenario& scenario, allocations::Threads threads,
                 std::uint64_t after) {
    Outcome outcome;
    std::optional<Error> error;
    allocations::fail_after(threads, after);
    try {
        auto done = scenario.run();
        outcome.failed_one = allocations::disarm();
        outcome.succeeded = done.has_value();
        if (!done)
            error = std::move(done.error());
    } catch (const std::bad_alloc&) {
        outcome.failed_one = allocations::disarm();
    } catch (const Exception& exception) {
        outcome.failed_one = allocations::disarm();
        error = exception.error();
    } catch (const std::exception& other) {
        outcome.failed_one = allocations::disarm();
        outcome.wrong = other.what();
    }
    if (error && !says_so(*error))
        outcome.wrong = error->message();
    if (!outcome.failed_one && !outcome.succeeded && outcome.wrong.empty())
        outcome.wrong = "it fails without a failure";
    return outcome;
}

} // namespace

AllocationTotals try_allocations(const AllocationScenario& scenario, allocations::Threads threads,
                                 unsigned hang_seconds) {
    AllocationTotals totals;
    const auto find = [&](const char* demand, std::string text) {
        if (!text.empty())
            totals.findings.push_back({demand, std::move(text)});
    };
    Watch watch(scenario.name, hang_seconds);
    // What is made once in a process is there before it is counted.
    scenario.set_up();
    watch.begin_run(0);
    find("wrong error", run_once(scenario, threads, ~std::uint64_t{0} >> 1).wrong);
    scenario.tear_down();
    const std::int64_t descriptors = open_descriptors();
    const std::int64_t living = allocations::living();
    scenario.set_up();
    while (totals.findings.empty()) {
        watch.begin_run(totals.runs);
        const Outcome outcome = run_once(scenario, threads, totals.runs);
        watch.begin_run(totals.runs);
        const auto at = [&](const std::string& text) {
            return text.empty() ? text : fmt::format("allocation {}: {}", totals.runs, text);
        };
        find("wrong error", at(outcome.wrong));
        find("harmed", at(scenario.harm(outcome.succeeded)));
        if (!outcome.failed_one) {
            find("left over", scenario.left_over());
            break;
        }
        ++totals.runs;
        totals.survived += outcome.succeeded;
    }
    scenario.tear_down();
    if (!totals.findings.empty())
        return totals;
    if (const std::int64_t kept = allocations::living() - living; kept > 0)
        find("leak", fmt::format("{} allocations", kept));
    if (const std::int64_t kept = open_descriptors() - descriptors; kept > 0)
        find("leak", fmt::format("{} descriptors", kept));
    return totals;
}

} // namespace safering::test
