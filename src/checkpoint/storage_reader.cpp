#include <safering/storage_reader.hpp>

#include <optional>

#include "checkpoint/attempt.hpp"
#include "checkpoint/caught.hpp"
#include "checkpoint/deliver.hpp"
#include "checkpoint/job_counter.hpp"
#include "checkpoint/load_offer.hpp"
#include "checkpoint/metrics.hpp"
#include "checkpoint/peer_group.hpp"
#include "checkpoint/read_exchange.hpp"
#include "checkpoint/read_job.hpp"
#include "checkpoint/shared_reactor.hpp"
#include "checkpoint/stored_checkpoint.hpp"
#include "io/trace.hpp"
#include "out_of_memory.hpp"
#include "plan/load_exchange_plan.hpp"
#include "plan/tensor_finder.hpp"

namespace safering {

using namespace checkpoint;

struct HuggingFaceStorageReader::Impl {
    SharedReactor reactor;
    std::string path;
    ReaderOptions options;
    std::map<std::string, std::vector<std::pair<std::string, std::string>>> file_metadata;
    std::optional<StoredCheckpoint> checkpoint;
    std::stop_source stop;
    JobCounter jobs;

    ~Impl() { jobs.wait_idle(); }

    Result<void> check(const LoadPlan& plan) const {
        if (!checkpoint)
            return fail(Errc::plan_not_prepared, "prepare load", "call read_metadata first");
        plan::TensorFinder tensors(checkpoint->metadata.tensors);
        for (const ReadItem& item : plan.items) {
            const TensorStorageMetadata* tensor = tensors.find(item.fqn);
            if (tensor == nullptr || item.chunk >= tensor->chunks.size())
                return std::unexpected(Error{.code = Errc::checkpoint_tensor_missing,
                                             .operation = "prepare load",
                                             .file = path,
                                             .tensor = std::string(item.fqn)});
        }
        return {};
    }

    // Nothing where this rank cannot exchange, and reads by itself.
    Result<std::optional<LoadOffer>> make_offer(const LoadPlan& plan) {
        auto running = reactor.get();
        if (!running)
            return std::unexpected(std::move(running.error()));
        const std::string endpoint = (*running)->endpoint();
        const auto chunk_bytes =
            read_chunk_bytes(*checkpoint, options.verification, (*running)->info().buffer_bytes);
        if (options.exchange == ExchangeWay::off || endpoint.empty() || !chunk_bytes ||
            *chunk_bytes > most_exchanged_chunk_bytes)
            return std::optional<LoadOffer>();
        return make_load_offer(*checkpoint, plan, options.verification, *chunk_bytes, endpoint);
    }

    // Of all readers on the reactor: which of them loads a plan first is the same for its partners.
    bool is_new(const std::optional<LoadExchange>& exchange) {
        const auto running = reactor.get();
        return exchange && running && PeerGroup::claim(**running, exchange->id, exchange->rank);
    }

    // Partners wait for a rank until it takes part or tells them why it does not.
    Result<std::shared_ptr<ReadJob>> make_job(const LoadPlan& plan, LoadPlanner& planner) {
        const bool exchange = is_new(plan.exchange);
        auto job = telling(
            [&] {                          // the planner may throw
                if (stop.stop_requested()) // of what was read before
                    stop = std::stop_source();
                return make_job(plan, planner, exchange);
            },
            [&](const std::string& why) {
                if (exchange)
                    tell(plan, why);
            });
        if (!job)
            metrics::add_read({}, metrics::Outcome::failed);
        return job;
    }

    Result<std::shared_ptr<ReadJob>> make_job(const LoadPlan& plan, LoadPlanner& planner,
                                              bool exchange) {
        if (!checkpoint)
            return fail(Errc::plan_not_prepared, "read data", "call read_metadata first");
        return ReadJob::make(*reactor.value(), *checkpoint, plan, planner,
                             {.verification = options.verification,
                              .progress = options.progress,
                              .stop = stop.get_token(),
                              .exchange = exchange,
                              .on_mismatch = {}});
    }

    void tell(const LoadPlan& plan, const std::string& why) {
        if (const auto running = reactor.get())
            ReadExchange::decline(**running, *plan.exchange, why);
    }
};

namespace {

Result<void> commit_all(std::span<const ReadItem> items, LoadPlanner& planner) {
    return or_out_of_memory([&]() -> Result<void> {
        for (const ReadItem& item : items)
            if (auto committed = planner.commit_tensor(item); !committed)
                return committed;
        return {};
    });
}

} // namespace

HuggingFaceStorageReader::HuggingFaceStorageReader(std::string path, ReaderOptions options,
                                                   std::shared_ptr<Reactor> reactor)
    : impl_(std::make_unique<Impl>()) {
    impl_->reactor = SharedReactor(std::move(reactor), path);
    impl_->path = std::move(path);
    impl_->options = std::move(options);
}

HuggingFaceStorageReader::~HuggingFaceStorageReader() = default;
HuggingFaceStorageReader::HuggingFaceStorageReader(HuggingFaceStorageReader&&) noexcept = default;
HuggingFaceStorageReader&
HuggingFaceStorageReader::operator=(HuggingFaceStorageReader&&) noexcept = default;

void HuggingFaceStorageReader::reset(std::string path) {
    impl_->jobs.wait_idle();
    impl_->checkpoint.reset();
    impl_->file_metadata.clear();
    if (!path.empty())
        impl_->path = std::move(path);
}

Result<Metadata> HuggingFaceStorageReader::read_metadata() {
    const trace::Span span("read_metadata");
    reset();
    return or_out_of_memory([this]() -> Result<Metadata> {
        auto reactor = impl_->reactor.get();
        if (!reactor)
            return std::unexpected(std::move(reactor.error()));
        auto opened = open_checkpoint(**reactor, impl_->path, impl_->options.strict, nullptr,
                                      impl_->options.sharding_info);
        if (!opened)
            return std::unexpected(std::move(opened.error()));
        for (const StoredFile& file : opened->files)
            impl_->file_metadata.emplace(file.name, file.header.metadata);
        impl_->checkpoint = std::move(*opened);
        return impl_->checkpoint->metadata;
    });
}

Result<LoadPlan> HuggingFaceStorageReader::prepare_local_plan(LoadPlan plan) {
    return or_out_of_memory([&]() -> Result<LoadPlan> {
        if (auto checked = impl_->check(plan); !checked)
            return std::unexpected(std::move(checked.error()));
        auto offer = impl_->make_offer(plan);
        if (!offer)
            return std::unexpected(std::move(offer.error()));
        plan.offer = std::move(*offer);
        plan.exchange.reset();
        return std::move(plan);
    });
}

Result<std::vector<LoadPlan>>
HuggingFaceStorageReader::prepare_global_plan(std::vector<LoadPlan> plans) const {
    return or_out_of_memory([&]() -> Result<std::vector<LoadPlan>> {
        std::vector<const LoadOffer*> offers;
        for (const LoadPlan& plan : plans) {
            if (auto checked = impl_->check(plan); !checked)
                return std::unexpected(std::move(checked.error()));
            offers.push_back(plan.offer ? &*plan.offer : nullptr);
        }
        auto exchanges = plan::plan_load_exchange(
            offers, {.way = impl_->options.exchange, .id = make_attempt_id()});
        for (std::size_t rank = 0; rank < plans.size(); ++rank) {
            plans[rank].offer.reset();
            plans[rank].exchange = std::move(exchanges[rank]);
        }
        return std::move(plans);
    });
}

Result<LoadReport> HuggingFaceStorageReader::read_data(const LoadPlan& plan, LoadPlanner& planner) {
    auto job = impl_->make_job(plan, planner);
    if (!job)
        return std::unexpected(std::move(job.error()));
    auto result = or_out_of_memory([&] { return (*job)->run(); });
    if (result)
        if (auto committed = commit_all(plan.items, planner); !committed)
            return std::unexpected(std::move(committed.error()));
    return result;
}

void HuggingFaceStorageReader::start_read(const LoadPlan& plan, LoadPlanner& planner,
                                          ReadHandler handler) {
    auto delivery = Delivery<LoadReport>::make(executor(), handler);
    if (!delivery)
        return decline(plan, no_memory);
    struct Load {
        JobCounter::Ticket ticket;
        std::vector<ReadItem> items; // for commit_tensor, when the plan may be gone
        std::unique_ptr<Delivery<LoadReport>> delivery{};
    };
    // Before the job: what has joined an exchange begins.
    auto load = or_out_of_memory([&]() -> Result<std::unique_ptr<Load>> {
        return std::unique_ptr<Load>(new Load{JobCounter::Ticket(impl_->jobs), plan.items});
    });
    if (!load)
        decline(plan, no_memory);
    auto job = load ? impl_->make_job(plan, planner)
                    : Result<std::shared_ptr<ReadJob>>(std::unexpected(std::move(load.error())));
    if (!job)
        return Delivery<LoadReport>::end(std::move(delivery),
                                         std::unexpected(std::move(job.error())));
    (*load)->delivery = std::move(delivery);
    (*job)->start([load = std::move(*load), &planner](Result<LoadReport> result) mutable {
        if (result)
            if (auto committed = commit_all(load->items, planner); !committed)
                result = std::unexpected(std::move(committed.error()));
        Delivery<LoadReport>::end(std::move(load->delivery), std::move(result));
    });
}

boost::asio::io_context::executor_type HuggingFaceStorageReader::executor() {
    return impl_->reactor.value()->executor();
}

void HuggingFaceStorageReader::decline(const LoadPlan& plan, const std::string& why) {
    if (impl_->is_new(plan.exchange))
        impl_->tell(plan, why);
}

void HuggingFaceStorageReader::cancel() {
    impl_->stop.request_stop();
}

std::string HuggingFaceStorageReader::metadata_path() const {
    return join(impl_->path, std::string(index_name));
}
const std::string& HuggingFaceStorageReader::path() const {
    return impl_->path;
}
const std::shared_ptr<Reactor>& HuggingFaceStorageReader::reactor() {
    return impl_->reactor.value();
}
const std::map<std::string, std::vector<std::pair<std::string, std::string>>>&
HuggingFaceStorageReader::file_metadata() const {
    return impl_->file_metadata;
}
const std::string& HuggingFaceStorageReader::attempt() const {
    static const std::string none;
    return impl_->checkpoint ? impl_->checkpoint->attempt : none;
}

} // namespace safering
