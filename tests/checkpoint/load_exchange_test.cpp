// Loads in which ranks hand on what several would read: everybody gets the bytes that were saved, each is read once,
// and nobody waits for a rank that does not come.
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <future>
#include <optional>

#include <gtest/gtest.h>

#include "../io/backends.hpp"
#include "model.hpp"

namespace safering::test {
namespace {

std::vector<std::shared_ptr<Reactor>> small_reactors(std::uint32_t ranks) {
    std::vector<std::shared_ptr<Reactor>> reactors;
    for (std::uint32_t rank = 0; rank < ranks; ++rank)
        reactors.push_back(small_reactor());
    return reactors;
}

// Ranks with their plans and memory, before they load.
class Loading {
  public:
    Loading(const Model& model, Sharding sharding, const std::string& path,
            const ReaderOptions& options, const std::vector<std::shared_ptr<Reactor>>& reactors)
        : model_(model), sharding_(sharding) {
        for (std::uint32_t rank = 0; rank < sharding.ranks; ++rank) {
            readers.push_back(std::make_unique<HuggingFaceStorageReader>(
                path, options, reactors[std::min<std::size_t>(rank, reactors.size() - 1)]));
            auto& memory = memory_.emplace_back(model.size());
            std::vector<LocalDestination> destinations;
            for (std::size_t i = 0; i < model.size(); ++i) {
                const ChunkStorageMetadata box = box_of(model[i], sharding, rank);
                // One more than needed: an empty vector has no memory, and an overrun would show.
                memory[i].assign(byte_size(model[i].dtype, box.sizes).value() + 1, std::byte{0xA5});
                destinations.push_back({.fqn = model[i].name,
                                        .data = {.data = memory[i].data(),
                                                 .dtype = model[i].dtype,
                                                 .shape = box.sizes},
                                        .size = model[i].shape,
                                        .offsets = box.offsets});
            }
            planners.push_back(std::make_unique<DefaultLoadPlanner>(std::move(destinations)));
            const Metadata metadata = value_or_throw(readers[rank]->read_metadata());
            LoadPlan plan = value_or_throw(planners[rank]->create_local_plan(metadata));
            plans.push_back(value_or_throw(load_plan_from_bytes(
                to_bytes(value_or_throw(readers[rank]->prepare_local_plan(std::move(plan)))))));
        }
        for (LoadPlan& plan : value_or_throw(readers[0]->prepare_global_plan(std::move(plans))))
            prepared.push_back(value_or_throw(load_plan_from_bytes(to_bytes(plan))));
    }

    std::future<LoadReport> start(std::uint32_t rank) {
        return readers[rank]->async_read_data(prepared[rank], *planners[rank]);
    }

    /// All ranks; the sums of their reports.
    LoadReport run() {
        std::vector<std::future<LoadReport>> futures;
        for (std::uint32_t rank = 0; rank < sharding_.ranks; ++rank)
            futures.push_back(start(rank));
        LoadReport all;
        for (std::future<LoadReport>& future : futures) {
            const LoadReport report = future.get();
            all.tensor_bytes += report.tensor_bytes;
            all.read_bytes += report.read_bytes;
            all.verified_bytes += report.verified_bytes;
            all.exchange.process_memory_bytes += report.exchange.process_memory_bytes;
            all.exchange.shared_memory_bytes += report.exchange.shared_memory_bytes;
        }
        return all;
    }

    std::string differences() const {
        std::string out;
        for (std::uint32_t rank = 0; rank < sharding_.ranks; ++rank)
            for (std::size_t i = 0; i < model_.size(); ++i) {
                auto expected = bytes_of(model_[i], box_of(model_[i], sharding_, rank));
                expected.push_back(std::byte{0xA5});
                if (memory_[rank][i] != expected)
                    out +=
                        "\"" + model_[i].name + "\" differs on rank " + std::to_string(rank) + "; ";
            }
        return out;
    }

    bool exchanges() const {
        return std::ranges::any_of(prepared,
                                   [](const LoadPlan& plan) { return plan.exchange.has_value(); });
    }

    std::vector<std::unique_ptr<HuggingFaceStorageReader>> readers;
    std::vector<std::unique_ptr<DefaultLoadPlanner>> planners;
    std::vector<LoadPlan> plans, prepared;

  private:
    const Model& model_;
    const Sharding sharding_;
    std::vector<std::vector<std::vector<std::byte>>> memory_;
};

std::optional<Error> error_of(std::future<LoadReport> future) {
    if (future.wait_for(std::chrono::seconds(60)) != std::future_status::ready) {
        ADD_FAILURE() << "the rank waits for ever";
        std::terminate(); // the future's destructor would, too, without a word
    }
    try {
        (void)future.get();
    } catch (const Exception& exception) {
        return exception.error();
    }
    return std::nullopt;
}

constexpr std::size_t replicated = 9; // no tensor has such a dimension

class LoadExchanging : public testing::Test {
  protected:
    void SetUp() override {
        ASSERT_TRUE(save(model_, {}, path(), {}, {small_reactor()}).has_value());
    }

    std::string path() { return temporary_.path() + "/c"; }

    static ReaderOptions options(ExchangeWay way,
                                 Verification verification = Verification::covered) {
        ReaderOptions out;
        out.verification = verification;
        out.exchange = way;
        return out;
    }

    // Flips a bit in the middle of the data.
    void damage() {
        std::fstream file(path() + "/model-00001-of-00001.safetensors",
                          std::ios::in | std::ios::out | std::ios::binary);
        file.seekg(0, std::ios::end);
        const auto middle = static_cast<std::streamoff>(file.tellg()) / 2;
        file.seekg(middle);
        const char byte = static_cast<char>(file.get() ^ 1);
        file.seekp(middle);
        file.put(byte);
    }

    TemporaryDirectory temporary_;
    const Model model_ = make_model(7);
};

TEST_F(LoadExchanging, EverybodyGetsWhatWasSaved) {
    for (const ExchangeWay way : {ExchangeWay::process_memory, ExchangeWay::shared_memory})
        for (const Verification verification :
             {Verification::covered, Verification::all, Verification::off})
            for (const std::uint32_t ranks : {2u, 3u, 4u})
                for (const std::size_t dimension : {std::size_t{1}, std::size_t{2}, replicated}) {
                    SCOPED_TRACE(std::string(name(way)) + ", ranks " + std::to_string(ranks) +
                                 ", dimension " + std::to_string(dimension));
                    Loading loading(model_, {ranks, dimension}, path(), options(way, verification),
                                    small_reactors(ranks));
                    ASSERT_TRUE(loading.exchanges());
                    const LoadReport report = loading.run();
                    EXPECT_EQ(loading.differences(), "");
                    EXPECT_EQ(report.exchange.process_memory_bytes > 0,
                              way == ExchangeWay::process_memory);
                    EXPECT_EQ(report.exchange.shared_memory_bytes > 0,
                              way == ExchangeWay::shared_memory);
                    EXPECT_EQ(report.verified_bytes > 0, verification != Verification::off);
                }
}

TEST_F(LoadExchanging, EveryByteIsReadOnce) {
    const auto read = [&](std::uint32_t ranks, ExchangeWay way) {
        return Loading(model_, {ranks, replicated}, path(), options(way), small_reactors(ranks))
            .run()
            .read_bytes;
    };
    const std::uint64_t alone = read(1, ExchangeWay::off);
    EXPECT_EQ(read(3, ExchangeWay::off), 3 * alone);
    EXPECT_EQ(read(3, ExchangeWay::process_memory), alone);
}

TEST_F(LoadExchanging, DisjointRowsAreEachRanksOwn) {
    const Model model{make_tensor("a", Dtype::f32, {64, 4096}, 1)};
    const std::string directory = temporary_.path() + "/rows";
    ASSERT_TRUE(save(model, {}, directory, {}, {small_reactor()}).has_value());
    Loading loading(model, {2, 0}, directory, options(ExchangeWay::process_memory),
                    small_reactors(2));
    EXPECT_FALSE(loading.exchanges());
    EXPECT_EQ(loading.run().exchange, ExchangeReport{});
    EXPECT_EQ(loading.differences(), "");
}

TEST_F(LoadExchanging, AutomaticallyWhereItIsCheaper) {
    const Model model{make_tensor("columns", Dtype::f32, {1536, 2048}, 1),
                      make_tensor("rank 4", Dtype::bf16, {64, 8, 64, 96}, 2)};
    const std::string directory = temporary_.path() + "/large";
    std::vector<std::shared_ptr<Reactor>> reactors{value_or_throw(Reactor::create()),
                                                   value_or_throw(Reactor::create())};
    ASSERT_TRUE(save(model, {}, directory, {}, reactors).has_value());
    Loading loading(model, {2, 1}, directory, {}, reactors);
    ASSERT_TRUE(loading.exchanges());
    const LoadReport report = loading.run();
    EXPECT_GT(report.exchange.process_memory_bytes + report.exchange.shared_memory_bytes, 0u);
    EXPECT_EQ(loading.differences(), "");
    Loading small(model_, {2, 1}, path(), {}, small_reactors(2));
    EXPECT_FALSE(small.exchanges()); // cells of 16 KiB are not worth a word
}

TEST_F(LoadExchanging, RanksMayShareAReactor) {
    for (const ExchangeWay way : {ExchangeWay::process_memory, ExchangeWay::shared_memory}) {
        Loading loading(model_, {4, 1}, path(), options(way), {small_reactor()});
        loading.run();
        EXPECT_EQ(loading.differences(), "");
    }
}

TEST_F(LoadExchanging, WithoutAManifest) {
    std::filesystem::remove(path() + "/safering.manifest.json");
    Loading loading(model_, {3, 1}, path(), options(ExchangeWay::process_memory),
                    small_reactors(3));
    ASSERT_TRUE(loading.exchanges());
    loading.run();
    EXPECT_EQ(loading.differences(), "");
}

TEST_F(LoadExchanging, OneThatIsOffReadsByItself) {
    std::vector<std::shared_ptr<Reactor>> reactors = small_reactors(3);
    Loading loading(model_, {3, 1}, path(), options(ExchangeWay::process_memory), reactors);
    HuggingFaceStorageReader off(path(), options(ExchangeWay::off), reactors[2]);
    ASSERT_TRUE(off.read_metadata().has_value());
    const LoadPlan plan = off.prepare_local_plan({}).value();
    EXPECT_FALSE(plan.offer.has_value());
}

TEST_F(LoadExchanging, APlanIsExchangedOnce) {
    Loading loading(model_, {2, 1}, path(), options(ExchangeWay::process_memory),
                    small_reactors(2));
    EXPECT_GT(loading.run().exchange.process_memory_bytes, 0u);
    EXPECT_EQ(loading.run().exchange.process_memory_bytes, 0u);
    EXPECT_EQ(loading.differences(), "");
    EXPECT_FALSE(error_of(loading.start(1)).has_value()); // without the other
}

// Which reader had it first does not matter; all of them are on the reactor that the others know.
TEST_F(LoadExchanging, APlanIsExchangedOnceByAllReadersOfARank) {
    auto reactors = small_reactors(2);
    Loading loading(model_, {2, 1}, path(), options(ExchangeWay::process_memory), reactors);
    EXPECT_GT(loading.run().exchange.process_memory_bytes, 0u);
    loading.readers[1] = std::make_unique<HuggingFaceStorageReader>(
        path(), options(ExchangeWay::process_memory), reactors[1]);
    ASSERT_TRUE(loading.readers[1]->read_metadata());
    EXPECT_EQ(loading.run().exchange.process_memory_bytes, 0u);
    EXPECT_EQ(loading.differences(), "");
}

TEST_F(LoadExchanging, TwoReadersMayLoadOnePlan) {
    auto reactors = small_reactors(2);
    Loading loading(model_, {2, 1}, path(), options(ExchangeWay::process_memory), reactors);
    HuggingFaceStorageReader other(path(), options(ExchangeWay::process_memory), reactors[1]);
    ASSERT_TRUE(other.read_metadata());
    auto first = loading.start(1);
    auto second = other.async_read_data(loading.prepared[1], *loading.planners[1]);
    EXPECT_FALSE(error_of(std::move(second)).has_value()); // alone, while the first one waits
    EXPECT_FALSE(error_of(loading.start(0)).has_value());
    EXPECT_FALSE(error_of(std::move(first)).has_value());
    EXPECT_EQ(loading.differences(), "");
}

TEST_F(LoadExchanging, AChangedByteIsEverybodysError) {
    damage();
    for (const ExchangeWay way : {ExchangeWay::process_memory, ExchangeWay::shared_memory}) {
        Loading loading(model_, {3, replicated}, path(), options(way), small_reactors(3));
        std::vector<std::future<LoadReport>> futures;
        for (std::uint32_t rank = 0; rank < 3; ++rank)
            futures.push_back(loading.start(rank));
        int found = 0;
        for (std::future<LoadReport>& future : futures) {
            const auto error = error_of(std::move(future));
            ASSERT_TRUE(error.has_value());
            found += error->code == Errc::checkpoint_digest_mismatch;
            if (error->code != Errc::checkpoint_digest_mismatch) {
                EXPECT_EQ(error->code, Errc::io_peer_lost) << error->message();
                EXPECT_NE(error->message().find("were changed since they were saved"),
                          std::string::npos)
                    << error->message();
            }
        }
        EXPECT_EQ(found, 1);
    }
}

TEST_F(LoadExchanging, ItemsMustBeThoseThatWerePlanned) {
    // Columns that nobody would read: runs far apart, so that reads do not go across.
    const Model model{make_tensor("far", Dtype::u8, {4, 1 << 20}, 1)};
    const std::string directory = temporary_.path() + "/far";
    auto reactors = std::vector<std::shared_ptr<Reactor>>{value_or_throw(Reactor::create()),
                                                          value_or_throw(Reactor::create())};
    ASSERT_TRUE(save(model, {}, directory, {}, reactors).has_value());
    std::vector<std::vector<std::byte>> memory(2, std::vector<std::byte>(4 << 20));
    std::vector<std::unique_ptr<HuggingFaceStorageReader>> readers;
    std::vector<std::unique_ptr<DefaultLoadPlanner>> planners;
    std::vector<LoadPlan> plans;
    for (std::size_t rank = 0; rank < 2; ++rank) {
        readers.push_back(std::make_unique<HuggingFaceStorageReader>(
            directory, options(ExchangeWay::process_memory, Verification::off), reactors[rank]));
        const Metadata metadata = readers[rank]->read_metadata().value();
        const auto planner_of = [&](std::uint64_t columns) {
            return std::make_unique<DefaultLoadPlanner>(std::vector<LocalDestination>{
                {.fqn = "far",
                 .data = {.data = memory[rank].data(), .dtype = Dtype::u8, .shape = {4, columns}},
                 .size = {4, 1 << 20},
                 .offsets = {0, 0}}});
        };
        LoadPlan plan = planner_of(4096)->create_local_plan(metadata).value();
        plans.push_back(readers[rank]->prepare_local_plan(std::move(plan)).value());
        planners.push_back(planner_of(rank == 1 ? 4096 : 1 << 20)); // the taker: all of them
        plans[rank].items = planners[rank]->create_local_plan(metadata).value().items;
    }
    plans = readers[0]->prepare_global_plan(std::move(plans)).value();
    ASSERT_TRUE(plans[1].exchange.has_value());
    ASSERT_EQ(plans[1].exchange->cells.front().owner, 1u);
    auto first = readers[0]->async_read_data(plans[0], *planners[0]);
    auto second = readers[1]->async_read_data(plans[1], *planners[1]);
    const auto errors = {error_of(std::move(first)), error_of(std::move(second))};
    EXPECT_TRUE(std::ranges::any_of(
        errors, [](const auto& error) { return error && error->code == Errc::plan_bad_bytes; }));
    EXPECT_TRUE(std::ranges::all_of(errors, [](const auto& error) { return error.has_value(); }));
}

// Two ranks of which the second does not load.
class LonelyLoad : public LoadExchanging {
  protected:
    void SetUp() override {
        LoadExchanging::SetUp();
        loading_.emplace(model_, Sharding{2, 1}, path(), options(ExchangeWay::process_memory),
                         small_reactors(2));
        ASSERT_TRUE(loading_->exchanges());
    }

    std::optional<Loading> loading_;
};

TEST_F(LonelyLoad, ARankThatDeclinesSaysWhy) {
    for (const bool early : {true, false}) {
        loading_.emplace(model_, Sharding{2, 1}, path(), options(ExchangeWay::process_memory),
                         small_reactors(2));
        std::future<LoadReport> first;
        if (!early)
            first = loading_->start(0);
        loading_->readers[1]->decline(loading_->prepared[1], "no memory left");
        if (early)
            first = loading_->start(0);
        const auto error = error_of(std::move(first));
        ASSERT_TRUE(error.has_value());
        EXPECT_EQ(error->code, Errc::io_peer_lost);
        EXPECT_NE(error->message().find("rank 1"), std::string::npos) << error->message();
        EXPECT_NE(error->message().find("no memory left"), std::string::npos) << error->message();
        EXPECT_FALSE(error_of(loading_->start(0)).has_value()) << "alone";
    }
}

TEST_F(LonelyLoad, OneThatCannotResolveItsTensorsDeclines) {
    DefaultLoadPlanner nothing({});
    auto first = loading_->start(0);
    EXPECT_TRUE(error_of(loading_->readers[1]->async_read_data(loading_->prepared[1], nothing))
                    .has_value());
    const auto error = error_of(std::move(first));
    ASSERT_TRUE(error.has_value());
    EXPECT_EQ(error->code, Errc::io_peer_lost);
}

TEST_F(LonelyLoad, OneWhosePlannerThrowsDeclines) {
    struct Throwing final : LoadPlanner {
        Result<MutableTensorView> resolve_tensor(const ReadItem&) override {
            throw std::runtime_error("no such luck");
        }
    } planner;
    auto first = loading_->start(0);
    EXPECT_THROW((void)loading_->readers[1]->async_read_data(loading_->prepared[1], planner),
                 std::runtime_error);
    const auto error = error_of(std::move(first));
    ASSERT_TRUE(error.has_value());
    EXPECT_NE(error->message().find("no such luck"), std::string::npos) << error->message();
}

TEST_F(LonelyLoad, OneThatHasOpenedNothingDeclines) {
    auto first = loading_->start(0);
    loading_->readers[1]->reset();
    const auto own = error_of(loading_->start(1));
    ASSERT_TRUE(own.has_value());
    EXPECT_EQ(own->code, Errc::plan_not_prepared);
    const auto error = error_of(std::move(first));
    ASSERT_TRUE(error.has_value());
    EXPECT_EQ(error->code, Errc::io_peer_lost);
    EXPECT_NE(error->message().find("read_metadata"), std::string::npos) << error->message();
}

TEST_F(LonelyLoad, OneThatHasOpenedAnotherCheckpointDeclines) {
    ASSERT_TRUE(save(make_model(8), {}, path(), {}, {small_reactor()}).has_value());
    ASSERT_TRUE(loading_->readers[1]->read_metadata());
    auto first = loading_->start(0);
    const auto own = error_of(loading_->start(1));
    ASSERT_TRUE(own.has_value());
    EXPECT_EQ(own->code, Errc::checkpoint_foreign_attempt) << own->message();
    EXPECT_NE(own->message().find(loading_->readers[1]->attempt()), std::string::npos)
        << own->message();
    const auto error = error_of(std::move(first));
    ASSERT_TRUE(error.has_value());
    EXPECT_EQ(error->code, Errc::io_peer_lost);
    EXPECT_NE(error->message().find(own->detail), std::string::npos) << error->message();
}

TEST_F(LonelyLoad, OneThatIsNotReachedWhereItsPlanSaysDeclines) {
    HuggingFaceStorageReader elsewhere(path(), options(ExchangeWay::process_memory),
                                       small_reactor());
    ASSERT_TRUE(elsewhere.read_metadata());
    auto first = loading_->start(0);
    const auto own =
        error_of(elsewhere.async_read_data(loading_->prepared[1], *loading_->planners[1]));
    ASSERT_TRUE(own.has_value());
    EXPECT_NE(own->message().find("another reactor"), std::string::npos) << own->message();
    const auto error = error_of(std::move(first));
    ASSERT_TRUE(error.has_value());
    EXPECT_EQ(error->code, Errc::io_peer_lost);
}

TEST_F(LonelyLoad, ARankThatIsGoneIsNotWaitedFor) {
    for (const bool early : {true, false}) {
        auto reactors = small_reactors(2);
        loading_.emplace(model_, Sharding{2, 1}, path(), options(ExchangeWay::process_memory),
                         reactors);
        std::future<LoadReport> first;
        if (!early)
            first = loading_->start(0);
        loading_->readers[1].reset();
        reactors[1].reset();
        if (early)
            first = loading_->start(0);
        const auto error = error_of(std::move(first));
        ASSERT_TRUE(error.has_value());
        EXPECT_EQ(error->code, Errc::io_peer_lost);
    }
}

TEST_F(LonelyLoad, CancelEndsTheWait) {
    auto first = loading_->start(0);
    EXPECT_EQ(first.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
    loading_->readers[0]->cancel();
    const auto error = error_of(std::move(first));
    ASSERT_TRUE(error.has_value());
    EXPECT_EQ(error->code, std::errc::operation_canceled);
}

// Cells that nobody reads, and a partner that lives nowhere.
TEST_F(LonelyLoad, APlanThatCannotBeCarriedOutIsAnError) {
    for (const bool unread : {true, false}) {
        loading_.emplace(model_, Sharding{2, 1}, path(), options(ExchangeWay::process_memory),
                         small_reactors(2));
        for (LoadPlan& plan : loading_->prepared)
            if (unread)
                plan.exchange->reads.clear();
            else
                plan.exchange->peers.front().endpoint.clear();
        auto first = loading_->start(0), second = loading_->start(1);
        const auto errors = {error_of(std::move(first)), error_of(std::move(second))};
        EXPECT_TRUE(std::ranges::any_of(errors, [](const auto& error) {
            return error && error->code == Errc::plan_bad_bytes;
        }));
        EXPECT_TRUE(
            std::ranges::all_of(errors, [](const auto& error) { return error.has_value(); }));
    }
}

// It takes part, and wants nothing by itself.
TEST_F(LonelyLoad, ARankWithoutItemsStillReadsForOthers) {
    loading_->prepared[1].items.clear();
    auto second = loading_->start(1);
    EXPECT_FALSE(error_of(loading_->start(0)).has_value());
    EXPECT_FALSE(error_of(std::move(second)).has_value());
}

} // namespace
} // namespace safering::test
