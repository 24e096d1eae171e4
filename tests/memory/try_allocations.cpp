#include "try_allocations.hpp"

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <optional>
#include <random>
#include <thread>

#include <fmt/format.h>

#include "../descriptors.hpp"

namespace safering::test {

namespace {

// The run that is under way, for a handler that may not look further.
char under_way[256];

[[noreturn]] void say_and_end(const char* what) {
    std::fprintf(stderr, "%s: %s\n", what, under_way);
    std::_Exit(3);
}

// Ends the process, saying so, where a run does not end or ends it.
class Watch {
  public:
    Watch(std::string name, const AllocationOptions& options)
        : name_(std::move(name)), options_(options),
          terminate_(std::set_terminate([] { say_and_end("died (std::terminate)"); })),
          thread_([this] { watch(); }) {}
    ~Watch() {
        std::set_terminate(terminate_);
        {
            const std::lock_guard lock(mutex_);
            over_ = true;
        }
        changed_.notify_all();
        thread_.join();
    }
    void begin_run(std::uint64_t run) {
        const std::lock_guard lock(mutex_);
        std::snprintf(under_way, sizeof under_way, "%s, allocation %llu fails %s, seed %llu",
                      name_.c_str(), static_cast<unsigned long long>(run),
                      options_.for_good ? "and all that follow" : "once",
                      static_cast<unsigned long long>(options_.seed));
        ++rounds_;
        changed_.notify_all();
    }

  private:
    void watch() {
        std::unique_lock lock(mutex_);
        while (!over_) {
            const std::uint64_t seen = rounds_;
            if (changed_.wait_for(lock, std::chrono::seconds(options_.hang_seconds),
                                  [&] { return over_ || rounds_ != seen; }))
                continue;
            say_and_end("hang");
        }
    }

    std::string name_;
    const AllocationOptions options_;
    std::terminate_handler terminate_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::uint64_t rounds_ = 0;
    bool over_ = false;
    std::thread thread_;
};

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
                 allocations::Failing failing) {
    Outcome outcome;
    std::optional<Error> error;
    allocations::fail(threads, failing);
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

AllocationTotals try_once(const AllocationScenario& scenario, const AllocationOptions& options) {
    AllocationTotals totals;
    const auto find = [&](const char* demand, std::string text) {
        if (!text.empty())
            totals.findings.push_back({demand, std::move(text)});
    };
    Watch watch(scenario.name, options);
    const auto try_one = [&](std::uint64_t after) {
        watch.begin_run(after);
        const Outcome outcome =
            run_once(scenario, options.threads, {.after = after, .for_good = options.for_good});
        const auto at = [&](const std::string& text) {
            return text.empty() ? text : fmt::format("allocation {}: {}", after, text);
        };
        find("wrong error", at(outcome.wrong));
        find("harmed", at(scenario.harm(outcome.succeeded)));
        totals.runs += outcome.failed_one;
        totals.survived += outcome.failed_one && outcome.succeeded;
        return outcome.failed_one;
    };
    constexpr std::uint64_t never = ~std::uint64_t{0} >> 1;
    // What is made once in a process is there before it is counted.
    scenario.set_up();
    try_one(never);
    scenario.tear_down();
    const std::int64_t descriptors = open_descriptors();
    const std::int64_t living = allocations::living();
    scenario.set_up();
    try_one(never);
    totals.allocations = allocations::count();
    if (options.runs == 0 || options.runs >= totals.allocations) {
        for (std::uint64_t after = 0; totals.findings.empty() && try_one(after);)
            ++after;
    } else {
        std::mt19937_64 random(options.seed);
        for (std::uint64_t i = 0; totals.findings.empty() && i < options.runs; ++i)
            try_one(random() % totals.allocations);
        if (totals.findings.empty())
            try_one(never);
    }
    if (totals.findings.empty())
        find("left over", scenario.left_over());
    scenario.tear_down();
    if (!totals.findings.empty())
        return totals;
    if (const std::int64_t kept = allocations::living() - living; kept > 0)
        find("leak", fmt::format("{} allocations", kept));
    if (const std::int64_t kept = open_descriptors() - descriptors; kept > 0)
        find("leak", fmt::format("{} descriptors", kept));
    return totals;
}

} // namespace

AllocationTotals try_allocations(const AllocationScenario& scenario,
                                 const AllocationOptions& options) {
    AllocationTotals totals = try_once(scenario, options);
    // What a process makes once may be made late, by a run that is not the first (Boost.Asio keeps two blocks for each
    // thread that runs a context, say); a leak comes again.
    if (totals.findings.size() == 1 && totals.findings.front().demand == std::string("leak"))
        totals = try_once(scenario, options);
    return totals;
}

} // namespace safering::test
