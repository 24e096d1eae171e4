#include "try_faults.hpp"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <thread>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace safering::test {

namespace {

// Ends the program, or lets a planted hang go on, where a run does not come back.
class Watchdog {
  public:
    Watchdog(unsigned seconds, std::function<void()> on_hang)
        : seconds_(seconds), on_hang_(std::move(on_hang)), thread_([this] { watch(); }) {}
    ~Watchdog() {
        {
            const std::lock_guard lock(mutex_);
            done_ = true;
        }
        changed_.notify_all();
        thread_.join();
    }
    void begin(std::string text) {
        const std::lock_guard lock(mutex_);
        text_ = std::move(text);
        begun_ = std::chrono::steady_clock::now();
        hung_ = false;
    }
    /// Whether it had hung.
    bool end() {
        const std::lock_guard lock(mutex_);
        begun_.reset();
        return hung_;
    }

  private:
    void watch() {
        std::unique_lock lock(mutex_);
        while (!done_) {
            changed_.wait_for(lock, std::chrono::milliseconds(100));
            if (!begun_ || hung_ ||
                std::chrono::steady_clock::now() - *begun_ < std::chrono::seconds(seconds_))
                continue;
            hung_ = true;
            if (!on_hang_) {
                fmt::print(stderr, "hangs: {}\n", text_);
                std::abort();
            }
            on_hang_();
        }
    }

    unsigned seconds_;
    std::function<void()> on_hang_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::string text_;
    std::optional<std::chrono::steady_clock::time_point> begun_;
    bool hung_ = false;
    bool done_ = false;
    std::thread thread_;
};

class Trial {
  public:
    Trial(const FaultScenario& scenario, const FaultOptions& options)
        : scenario_(scenario), options_(options),
          watchdog_(options.hang_seconds, options.on_hang
                                              ? [this] { options_.on_hang(*stage_.disk); }
                                              : std::function<void()>()) {}

    FaultTotals run() {
        const std::vector<FaultCase> cases = fault_cases(trace(), scenario_.patient);
        const std::size_t step =
            options_.cases == 0 ? 1 : std::max<std::size_t>(1, cases.size() / options_.cases);
        for (std::size_t i = 0; i < cases.size(); i += step) {
            case_ = &cases[i];
            ++totals_.cases;
            one();
            if (options_.stop_at_first && !totals_.findings.empty())
                break;
        }
        return std::move(totals_);
    }

  private:
    std::vector<Traced> trace() {
        stage_.set(scenario_.before);
        const Tracer tracer(*stage_.disk);
        if (auto done = scenario_.run(stage_); !done)
            throw Exception(done.error());
        (void)stage_.leaks(); // the closes belong to it
        stage_.disk->intercept({});
        totals_.operations = tracer.operations().size();
        return tracer.operations();
    }

    void found(std::string demand, std::string text) {
        totals_.findings.push_back({std::move(demand), case_->text + ": " + std::move(text)});
    }

    void one() {
        stage_.set(scenario_.before);
        stage_.disk->inject(case_->fault);
        if (options_.plant)
            options_.plant(*stage_.disk);
        watchdog_.begin(scenario_.name + ", " + case_->text);
        const auto done = scenario_.run(stage_);
        if (watchdog_.end())
            found("hang", "it does not end");
        ++(done ? totals_.survived : totals_.failed);
        if (auto leaks = stage_.leaks(); !leaks.empty())
            found("leak", std::move(leaks));
        hits_ = stage_.disk->hits();
        stage_.disk->clear_faults();
        if (!done && case_->transient)
            found("transient", done.error().message());
        else if (!done)
            check_error(done.error());
        check_left_over(done);
        check_durable(done.has_value());
        try_again();
    }

    void check_error(const Error& error) {
        const bool shortened = case_->fault.error == 0;
        const bool right =
            shortened ? error.code == Errc::io_no_progress || error.code == Errc::io_unexpected_end
                      : error.code.category() == std::system_category() &&
                            error.code.value() == case_->fault.error;
        if (!right)
            found("wrong error", error.message());
        const bool named = std::ranges::any_of(hits_, [&](const SimulatedDisk::Hit& hit) {
            return !error.file.empty() && (error.file == hit.path || error.file == hit.new_path);
        });
        if (!named)
            found("wrong error",
                  fmt::format("it names \"{}\", hit was {}: {}", error.file,
                              hits_.empty() ? "nothing" : hits_.front().path, error.message()));
    }

    // Beside the target; in it recover() looks.
    void check_left_over(const Result<std::vector<std::string>>& done) {
        const bool removing = std::ranges::any_of(hits_, [](const SimulatedDisk::Hit& hit) {
            return hit.op == Opcode::unlink || hit.op == Opcode::remove_directory ||
                   hit.op == Opcode::list;
        });
        const auto names = stage_.names("/ckpt");
        const auto& beside = scenario_.expectations.beside;
        const bool tidy = std::ranges::all_of(
            names, [&](const std::string& name) { return std::ranges::count(beside, name) != 0; });
        const bool unfinished =
            stage_.disk->exists(scenario_.expectations.path + "/.safering.redo");
        if (!tidy && !removing && !unfinished)
            found("left over", fmt::format("{}", fmt::join(names, ", ")));
        if (!tidy && done && done->empty())
            found("left over", fmt::format("without a note: {}", fmt::join(names, ", ")));
    }

    void check_durable(bool reported) {
        platter_.set(stage_.disk->crash()->now());
        auto outcome = recover(scenario_.expectations, platter_.disk, platter_.reactor);
        judge("after a power cut", outcome, reported, "not durable");
        // The disk as it is: for the next run.
        outcome = recover(scenario_.expectations, stage_.disk, stage_.reactor);
        judge("afterwards", outcome, reported, "harmed");
    }

    void judge(const std::string& when, const Outcome& outcome, bool reported,
               const std::string& demand) {
        const bool old = outcome.found == Found::old ||
                         (outcome.found == Found::nothing && !scenario_.expectations.old);
        const bool fresh = outcome.found == Found::fresh && !scenario_.only_reads;
        if (!old && !fresh)
            found("harmed", fmt::format("{}: {}", when, outcome.problem));
        else if (!outcome.problem.empty())
            found("left over", fmt::format("{}: {}", when, outcome.problem));
        else if (reported && !fresh && !scenario_.only_reads)
            found(demand, when + " the old checkpoint is there, though success was reported");
    }

    void try_again() {
        const auto done = scenario_.run(stage_);
        if (!done)
            return found("retry", done.error().message());
        const Outcome outcome = recover(scenario_.expectations, stage_.disk, stage_.reactor);
        const Found wanted = scenario_.only_reads ? Found::old : Found::fresh;
        if (outcome.found != wanted || !outcome.problem.empty())
            found("retry", outcome.problem.empty() ? "another checkpoint" : outcome.problem);
        const auto names = stage_.names("/ckpt");
        if (names != scenario_.expectations.beside)
            found("retry", fmt::format("left over: {}", fmt::join(names, ", ")));
        if (auto leaks = stage_.leaks(); !leaks.empty())
            found("retry", "leaks " + leaks);
    }

    const FaultScenario& scenario_;
    const FaultOptions& options_;
    Stage stage_;
    Stage platter_;
    Watchdog watchdog_;
    const FaultCase* case_ = nullptr;
    std::vector<SimulatedDisk::Hit> hits_;
    FaultTotals totals_;
};

} // namespace

FaultTotals try_faults(const FaultScenario& scenario, const FaultOptions& options) {
    return Trial(scenario, options).run();
}

} // namespace safering::test
