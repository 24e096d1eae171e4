#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "checkpoint/caught.hpp"
#include "checkpoint/commit_checkpoint.hpp"
#include "checkpoint/commit_part.hpp"
#include "checkpoint/deliver.hpp"
#include "checkpoint/metrics.hpp"
#include "checkpoint/perform.hpp"
#include "checkpoint/storage_writer_impl.hpp"
#include "checkpoint/strict_json.hpp"
#include "io/trace.hpp"
#include "out_of_memory.hpp"
#include "plan/text.hpp"

namespace safering {

using namespace checkpoint;

namespace {

void add_exchange(SaveReport& report, const std::vector<WriteResults>& results) {
    const std::string* reason = nullptr;
    for (const WriteResults& result : results) {
        report.process_memory_bytes += result.exchange.process_memory_bytes;
        report.shared_memory_bytes += result.exchange.shared_memory_bytes;
        if (!result.exchange.reason.empty())
            reason = &result.exchange.reason;
    }
    if (reason != nullptr)
        report.notes.push_back("ranks exchanged through shared memory: " + *reason);
}

// A rank that went another way than most may be the one that the others wait for.
void add_ranks(SaveReport& report, std::vector<WriteResults> results) {
    for (WriteResults& result : results)
        report.ranks.push_back(
            {result.rank, result.work, result.backend, std::move(result.reason)});
    std::ranges::sort(report.ranks, {}, &RankReport::rank);
    const RankSummary summary = summarise(report.ranks);
    for (const BackendRanks& one : summary.backends)
        if (const BackendKind usual = summary.backends.front().backend; one.backend != usual)
            report.notes.push_back(fmt::format("{} wrote by {}, not {} as most: {}",
                                               plan::ranks_in_words(one.ranks), name(one.backend),
                                               name(usual), one.reason));
}

} // namespace

HuggingFaceStorageWriter::Impl::~Impl() {
    // Nobody is left to tell; what stays behind carries the attempt's name and is cleaned away by the
    // next save that succeeds.
    (void)or_out_of_memory([this] { return abort(); });
}

// What attempts are named after: ranks that save alone must not clean away each other's.
TargetPath HuggingFaceStorageWriter::Impl::attempt_base() const {
    TargetPath base = target;
    if (options.alone)
        base.name += fmt::format(".rank-{:05}", options.alone->rank);
    return base;
}

Result<void> HuggingFaceStorageWriter::Impl::abort() {
    jobs.wait_idle();
    if (!attempt)
        return {};
    (void)attempt->heads.wait(); // what they came to is of no interest any more
    const std::string directory = std::move(attempt->directory);
    attempt.reset();
    auto running = reactor.get();
    if (!running)
        return std::unexpected(std::move(running.error()));
    return remove_attempt_directory(**running, directory);
}

HuggingFaceStorageWriter::HuggingFaceStorageWriter(std::string path, WriterOptions options,
                                                   std::shared_ptr<Reactor> reactor)
    : impl_(std::make_unique<Impl>()) {
    impl_->reactor = SharedReactor(std::move(reactor), path);
    impl_->options = std::move(options);
    impl_->throttle = std::make_shared<Throttle>(impl_->options.limits);
    impl_->set_path(std::move(path));
}

HuggingFaceStorageWriter::~HuggingFaceStorageWriter() = default;
HuggingFaceStorageWriter::HuggingFaceStorageWriter(HuggingFaceStorageWriter&&) noexcept = default;
HuggingFaceStorageWriter&
HuggingFaceStorageWriter::operator=(HuggingFaceStorageWriter&&) noexcept = default;

Result<void> HuggingFaceStorageWriter::reset(std::string path) {
    return or_out_of_memory([&] {
        auto aborted = impl_->abort();
        if (!path.empty())
            impl_->set_path(std::move(path));
        return aborted;
    });
}

Result<SavePlan> HuggingFaceStorageWriter::prepare_local_plan(SavePlan plan) const {
    return or_out_of_memory([&] { return impl_->prepare_local_plan(std::move(plan)); });
}

Result<std::vector<SavePlan>>
HuggingFaceStorageWriter::prepare_global_plan(std::vector<SavePlan> plans) {
    return or_out_of_memory([&] { return impl_->prepare_global_plan(std::move(plans)); });
}

void HuggingFaceStorageWriter::start_write(const SavePlan& plan, SavePlanner& planner,
                                           WriteHandler handler) {
    auto delivery = Delivery<WriteResults>::make(executor(), handler);
    if (!delivery)
        return decline(plan, no_memory);
    auto job = or_out_of_memory([&] { return impl_->make_job(plan, planner); });
    if (!job) {
        metrics::add_write({}, metrics::Outcome::failed);
        return Delivery<WriteResults>::end(std::move(delivery),
                                           std::unexpected(std::move(job.error())));
    }
    (*job)->start([ticket = JobCounter::Ticket(impl_->jobs),
                   delivery = std::move(delivery)](Result<WriteResults> result) mutable {
        Delivery<WriteResults>::end(std::move(delivery), std::move(result));
    });
}

// Partners wait for a rank until it takes part or tells them why it does not.
Result<std::shared_ptr<WriteJob>> HuggingFaceStorageWriter::Impl::make_job(const SavePlan& plan,
                                                                           SavePlanner& planner) {
    Reactor& running = *reactor.value();
    if (!WriteExchange::claim(running, plan))
        return fail(
            Errc::plan_not_prepared, "write data",
            "this plan has been written or declined before, and ranks that exchange do so once; "
            "prepare the save again");
    return telling(
        [&] {                          // the planner may throw
            if (stop.stop_requested()) // of what was written before
                stop = std::stop_source();
            if (plan.storage)
                begin_work(plan.storage->attempt);
            return WriteJob::make(running, plan, planner,
                                  {.digests = options.digests,
                                   .progress = options.progress,
                                   .stop = stop.get_token(),
                                   .throttle = throttle,
                                   .on_work = [this](const WorkReport& done) { add_work(done); }});
        },
        [&](const std::string& why) { WriteExchange::decline(running, plan, why); });
}

Result<Manifest>
HuggingFaceStorageWriter::Impl::build_manifest(const std::vector<WriteResults>& results) {
    if (auto durable = attempt->heads.wait(); !durable)
        return std::unexpected(std::move(durable.error()));
    return attempt->manifest.build(results);
}

SaveReport HuggingFaceStorageWriter::Impl::report_of(Reactor& running) const {
    return {.path = target.path,
            .attempt = attempt->id,
            .files = attempt->files.size(),
            .tensor_bytes = attempt->tensor_bytes,
            .reactor = running.info(),
            .file_system = file_system,
            .notes = environment_notes(file_system)};
}

// The attempt's directory is left empty, and removed with what an earlier attempt of this rank left.
Result<SaveReport> HuggingFaceStorageWriter::Impl::commit_alone(std::vector<WriteResults> results) {
    if (auto manifest = build_manifest(results); !manifest)
        return std::unexpected(std::move(manifest.error()));
    Reactor& running = *reactor.value();
    SaveReport report = report_of(running);
    for (WriteResults& result : results) // of the plan, there is one
        result.rank = options.alone->rank;
    add_ranks(report, std::move(results));
    if (auto done = commit_part(running, target, attempt->directory, attempt->files); !done)
        return std::unexpected(std::move(done.error()));
    if (auto removed = abort(); !removed)
        report.notes.push_back(removed.error().message());
    std::ranges::move(remove_attempts_up_to(running, attempt_base(), report.attempt),
                      std::back_inserter(report.notes));
    return report;
}

Result<SaveReport> HuggingFaceStorageWriter::finish(const Metadata&,
                                                    std::vector<WriteResults> results) {
    double seconds = 0;
    auto report = [&] {
        const WorkMeter::Phase committing(seconds);
        return or_out_of_memory([&] { return impl_->finish(std::move(results)); });
    }();
    metrics::add_commit(report ? report->tensor_bytes : 0, seconds,
                        report ? metrics::Outcome::good : metrics::Outcome::failed);
    if (report) {
        report->prepare_seconds = impl_->prepare_seconds;
        report->commit_seconds = seconds;
        report->work = impl_->work_done();
    }
    return report;
}

WorkReport HuggingFaceStorageWriter::work() const {
    return impl_->work_done();
}

Result<SaveReport> HuggingFaceStorageWriter::Impl::finish(std::vector<WriteResults> results) {
    trace::Interval interval("finish: the metadata commit");
    if (!attempt)
        return fail(Errc::plan_not_prepared, "finish",
                    "no attempt is open: prepare_global_plan was not called, or failed");
    jobs.wait_idle();
    auto report = or_out_of_memory([&] {
        return options.alone ? commit_alone(std::move(results)) : commit(std::move(results));
    });
    // The first error is the one to report; a directory that stays is cleaned away later. Nothing is left to abort
    // where the checkpoint is in its place.
    if (!report)
        (void)or_out_of_memory([this] { return abort(); });
    return report;
}

// Forgets the attempt as soon as it is in its place.
Result<SaveReport> HuggingFaceStorageWriter::Impl::commit(std::vector<WriteResults> results) {
    auto manifest = build_manifest(results);
    if (!manifest)
        return std::unexpected(std::move(manifest.error()));
    Reactor& running = *reactor.value();
    CommitInput input{.target = target,
                      .attempt = attempt->id,
                      .data_files = attempt->files,
                      .manifest = {},
                      .index = std::move(attempt->index),
                      .stale = {}};
    if (!input.index.empty())
        manifest->index =
            ManifestIndex{.file_bytes = input.index.size(), .digest = digest_of(input.index)};
    input.manifest = to_text(*manifest);
    if (auto fits = check_record_size(manifest_name, input.manifest.size()); !fits)
        return std::unexpected(std::move(fits.error()));
    SaveReport report = report_of(running);
    add_exchange(report, results);
    add_ranks(report, std::move(results));
    CommitOutcome outcome = commit_checkpoint(running, std::move(input));
    if (outcome.published)
        attempt.reset();
    if (outcome.error)
        return std::unexpected(std::move(*outcome.error));
    report.replaced = outcome.replaced;
    std::ranges::move(outcome.notes, std::back_inserter(report.notes));
    return report;
}

void HuggingFaceStorageWriter::decline(const SavePlan& plan, const std::string& why) {
    if (const auto running = impl_->reactor.get(); running && WriteExchange::claim(**running, plan))
        WriteExchange::decline(**running, plan, why);
}

Result<void> HuggingFaceStorageWriter::abort() {
    return or_out_of_memory([this] { return impl_->abort(); });
}

void HuggingFaceStorageWriter::cancel() {
    impl_->stop.request_stop();
}

void HuggingFaceStorageWriter::lift_limits() {
    impl_->throttle->lift();
}

std::string HuggingFaceStorageWriter::metadata_path() const {
    return join(impl_->path, std::string(index_name));
}
const std::string& HuggingFaceStorageWriter::path() const {
    return impl_->path;
}
const std::shared_ptr<Reactor>& HuggingFaceStorageWriter::reactor() {
    return impl_->reactor.value();
}
boost::asio::io_context::executor_type HuggingFaceStorageWriter::executor() {
    return impl_->reactor.value()->executor();
}

Result<std::map<std::uint32_t, std::vector<WriteItem>>>
HuggingFaceStorageWriter::split_by_storage_plan(const FqnToIndexMapping& mapping,
                                                std::vector<WriteItem> items) {
    std::map<std::uint32_t, std::vector<WriteItem>> out;
    for (WriteItem& item : items) {
        std::uint32_t index = 1;
        if (!mapping.empty()) {
            const auto found = mapping.find(item.fqn);
            if (found == mapping.end())
                return std::unexpected(Error{.code = Errc::plan_unmapped_tensor,
                                             .operation = "split by storage plan",
                                             .tensor = std::string(item.fqn)});
            index = found->second;
        }
        out[index].push_back(std::move(item));
    }
    return out;
}

} // namespace safering
