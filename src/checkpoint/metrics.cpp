#include "checkpoint/metrics.hpp"

#include <array>
#include <mutex>
#include <string_view>
#include <type_traits>
#include <utility>

#include <fmt/format.h>

#include <safering/metrics.hpp>

namespace safering {

namespace checkpoint::metrics {

namespace {

struct Jobs {
    std::uint64_t good = 0;
    std::uint64_t failed = 0;
    WorkReport work;

    void add(const WorkReport& done, Outcome outcome) {
        ++(outcome == Outcome::good ? good : failed);
        work += done;
    }
};

struct Counters {
    std::mutex mutex;
    Jobs writes;
    Jobs reads;
    std::uint64_t commits = 0;
    std::uint64_t failed_commits = 0;
    double commit_seconds = 0;
    std::uint64_t saved_bytes = 0;
    std::uint64_t loaded_bytes = 0;
    std::uint64_t verified_bytes = 0;
    std::uint64_t mismatches = 0;

    std::array<std::pair<std::string_view, const Jobs*>, 2> directions() const {
        return {{{"write", &writes}, {"read", &reads}}};
    }
};

// Never destroyed: a thread may end a job while the process ends.
Counters& counters() {
    static constinit Counters all;
    static_assert(std::is_trivially_destructible_v<Counters>);
    return all;
}

class Text {
  public:
    void begin(std::string_view name, std::string_view help) {
        name_ = name;
        out_ += fmt::format("# HELP safering_{0} {1}\n# TYPE safering_{0} counter\n", name, help);
    }
    template <typename Number>
    void add(std::string_view labels, Number value) {
        out_ += fmt::format("safering_{}{} {}\n", name_, labels, value);
    }
    template <typename Number>
    void one(std::string_view name, std::string_view help, Number value) {
        begin(name, help);
        add("", value);
    }
    template <typename Value>
    void both(std::string_view name, std::string_view help, const Counters& of, Value value) {
        begin(name, help);
        for (const auto& [direction, jobs] : of.directions())
            add(fmt::format("{{direction=\"{}\"}}", direction), value(*jobs));
    }
    std::string take() { return std::move(out_); }

  private:
    std::string_view name_;
    std::string out_;
};

std::string to_text(const Counters& of) {
    Text text;
    text.begin("saves_total",
               "Commits of this process, the one moment at which a checkpoint exists.");
    text.add("{result=\"good\"}", of.commits);
    text.add("{result=\"failed\"}", of.failed_commits);
    text.one("saved_bytes_total",
             "Bytes of tensors in the checkpoints committed here, of all ranks.", of.saved_bytes);
    text.one("commit_seconds_total", "Seconds of finish.", of.commit_seconds);
    text.begin("jobs_total", "Calls of write_data and read_data that have ended.");
    for (const auto& [direction, jobs] : of.directions()) {
        text.add(fmt::format("{{direction=\"{}\",result=\"good\"}}", direction), jobs->good);
        text.add(fmt::format("{{direction=\"{}\",result=\"failed\"}}", direction), jobs->failed);
    }
    text.both("job_seconds_total", "Seconds from their calls to their ends.", of,
              [](const Jobs& jobs) { return jobs.work.seconds; });
    text.begin("phase_seconds_total", "Seconds by phase; copies are made while the disk works.");
    for (const auto& [direction, jobs] : of.directions()) {
        const WorkReport& work = jobs->work;
        const std::array<std::pair<std::string_view, double>, 7> phases{
            {{"plan", work.plan_seconds},
             {"transfer", work.transfer_seconds},
             {"stall", work.stall_seconds},
             {"copy", work.copy_seconds},
             {"verify", work.verify_seconds},
             {"pause", work.pause_seconds},
             {"flush", work.flush_seconds}}};
        for (const auto& [phase, seconds] : phases)
            text.add(fmt::format("{{direction=\"{}\",phase=\"{}\"}}", direction, phase), seconds);
    }
    text.begin("transferred_bytes_total", "Bytes of requests, past the page cache and through it.");
    for (const auto& [direction, jobs] : of.directions()) {
        text.add(fmt::format("{{direction=\"{}\",way=\"direct\"}}", direction),
                 jobs->work.direct_bytes);
        text.add(fmt::format("{{direction=\"{}\",way=\"cached\"}}", direction),
                 jobs->work.cached_bytes);
    }
    text.both("requests_total", "Requests to the disk.", of,
              [](const Jobs& jobs) { return jobs.work.requests; });
    text.both("retries_total",
              "Attempts at requests beyond the first: what came back short, interrupted or busy.",
              of, [](const Jobs& jobs) { return jobs.work.retries; });
    text.both("stalls_total", "Times that the disk had nothing to do although there was more.", of,
              [](const Jobs& jobs) { return jobs.work.stalls; });
    text.one("loaded_bytes_total", "Bytes of tensors loaded.", of.loaded_bytes);
    text.one("verified_bytes_total", "Bytes checked against the digests of their save.",
             of.verified_bytes);
    text.one("digest_mismatches_total", "Pieces that were not what was saved.", of.mismatches);
    return text.take();
}

} // namespace

void add_write(const WorkReport& work, Outcome outcome) {
    const std::lock_guard lock(counters().mutex);
    counters().writes.add(work, outcome);
}

void add_read(const LoadReport& report, Outcome outcome) {
    Counters& all = counters();
    const std::lock_guard lock(all.mutex);
    all.reads.add(report.work, outcome);
    if (outcome == Outcome::good)
        all.loaded_bytes += report.tensor_bytes;
    all.verified_bytes += report.verified_bytes;
}

void add_commit(std::uint64_t tensor_bytes, double seconds, Outcome outcome) {
    Counters& all = counters();
    const std::lock_guard lock(all.mutex);
    ++(outcome == Outcome::good ? all.commits : all.failed_commits);
    all.commit_seconds += seconds;
    all.saved_bytes += tensor_bytes;
}

void add_mismatch() {
    const std::lock_guard lock(counters().mutex);
    ++counters().mismatches;
}

} // namespace checkpoint::metrics

std::string prometheus_text() {
    checkpoint::metrics::Counters& all = checkpoint::metrics::counters();
    const std::lock_guard lock(all.mutex);
    return checkpoint::metrics::to_text(all);
}

} // namespace safering
