// Saves in which ranks take each other's bytes: the files are those of a save by one rank, and nobody waits for a
// rank that does not come.
#include <chrono>
#include <filesystem>
#include <fstream>
#include <future>

#include <gtest/gtest.h>

#include "../io/backends.hpp"
#include "model.hpp"

namespace safering::test {
namespace {

std::string data_of(const std::string& directory) {
    std::ifstream file(directory + "/model-00001-of-00001.safetensors", std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

class Exchange : public testing::Test {
  protected:
    std::string path(const std::string& name) { return temporary_.path() + "/" + name; }

    TemporaryDirectory temporary_;
    const Model model_ = make_model(7);
};

TEST_F(Exchange, FilesAreThoseOfOneRank) {
    ASSERT_TRUE(save(model_, {}, path("one"), {}, {small_reactor()}).has_value());
    const std::string expected = data_of(path("one"));
    ASSERT_FALSE(expected.empty());
    for (const ExchangeWay way : {ExchangeWay::automatic, ExchangeWay::process_memory,
                                  ExchangeWay::shared_memory, ExchangeWay::off})
        for (const std::uint32_t ranks : {2u, 3u})
            for (const std::size_t dimension : {0u, 1u, 2u}) {
                SCOPED_TRACE(std::string(name(way)) + ", ranks " + std::to_string(ranks) +
                             ", dimension " + std::to_string(dimension));
                std::vector<std::shared_ptr<Reactor>> reactors;
                for (std::uint32_t rank = 0; rank < ranks; ++rank)
                    reactors.push_back(small_reactor());
                WriterOptions options;
                options.exchange = way;
                const auto report =
                    save(model_, {ranks, dimension}, path("many"), options, reactors);
                ASSERT_TRUE(report.has_value()) << report.error().message();
                EXPECT_TRUE(data_of(path("many")) == expected);
                EXPECT_EQ(report->process_memory_bytes > 0,
                          way == ExchangeWay::process_memory || way == ExchangeWay::automatic);
                EXPECT_EQ(report->shared_memory_bytes > 0, way == ExchangeWay::shared_memory);
                const auto verified = verify_checkpoint(path("many"), *reactors[0]);
                ASSERT_TRUE(verified.has_value());
                EXPECT_TRUE(verified->findings.empty());
            }
}

TEST_F(Exchange, RanksMayShareAReactor) {
    const auto reactor = small_reactor();
    WriterOptions options;
    options.exchange = ExchangeWay::shared_memory;
    const auto report = save(model_, {4, 1}, path("c"), options, {reactor});
    ASSERT_TRUE(report.has_value()) << report.error().message();
    EXPECT_EQ(differences(model_, {1, 0}, path("c"), reactor), "");
}

// Two ranks with their plans, of which the second does not write.
class Lonely : public Exchange {
  protected:
    void SetUp() override {
        std::vector<SavePlan> plans;
        for (std::uint32_t rank = 0; rank < 2; ++rank) {
            ranks_.push_back(cut(model_, {2, 1}, rank));
            reactors_.push_back(small_reactor());
            writers_.push_back(std::make_unique<HuggingFaceStorageWriter>(
                path("c"), WriterOptions{}, reactors_[rank]));
            planners_.push_back(std::make_unique<DefaultSavePlanner>(ranks_[rank].tensors, rank));
            plans.push_back(
                writers_[rank]->prepare_local_plan(planners_[rank]->create_local_plan()).value());
        }
        plans_ = writers_[0]
                     ->prepare_global_plan(create_global_plan(std::move(plans)).value().plans)
                     .value();
        ASSERT_TRUE(plans_[0].storage->exchange.has_value());
    }

    Error error_of(std::future<WriteResults> future) {
        EXPECT_EQ(future.wait_for(std::chrono::seconds(10)), std::future_status::ready);
        try {
            (void)future.get();
        } catch (const Exception& exception) {
            return exception.error();
        }
        ADD_FAILURE() << "no error";
        return {};
    }

    void expect_told(std::future<WriteResults> future, const std::string& why) {
        const Error error = error_of(std::move(future));
        EXPECT_EQ(error.code, Errc::io_peer_lost);
        EXPECT_NE(error.message().find("rank 1"), std::string::npos) << error.message();
        EXPECT_NE(error.message().find(why), std::string::npos) << error.message();
    }

    std::vector<Rank> ranks_;
    std::vector<std::shared_ptr<Reactor>> reactors_;
    std::vector<std::unique_ptr<HuggingFaceStorageWriter>> writers_;
    std::vector<std::unique_ptr<DefaultSavePlanner>> planners_;
    std::vector<SavePlan> plans_;
};

TEST_F(Lonely, ARankThatHasDeclinedSaysWhy) {
    writers_[1]->decline(plans_[1], "no memory left");
    expect_told(writers_[0]->write_data(plans_[0], *planners_[0]), "no memory left");
}

TEST_F(Lonely, ARankThatDeclinesSaysWhy) {
    auto first = writers_[0]->write_data(plans_[0], *planners_[0]);
    writers_[1]->decline(plans_[1], "no memory left");
    expect_told(std::move(first), "no memory left");
}

TEST_F(Lonely, OneWhosePlannerThrowsDeclines) {
    struct Throwing final : SavePlanner {
        Result<TensorView> resolve_data(const WriteItem&) override {
            throw std::runtime_error("no such luck");
        }
    } planner;
    auto first = writers_[0]->write_data(plans_[0], *planners_[0]);
    EXPECT_THROW((void)writers_[1]->write_data(plans_[1], planner), std::runtime_error);
    expect_told(std::move(first), "no such luck");
}

// Partners have ended with it: whoever wrote it again would wait for ever.
TEST_F(Lonely, APlanIsWrittenOnce) {
    auto first = writers_[0]->write_data(plans_[0], *planners_[0]);
    const Error again = error_of(writers_[0]->write_data(plans_[0], *planners_[0]));
    EXPECT_EQ(again.code, Errc::plan_not_prepared);
    writers_[1]->decline(plans_[1], "enough");
    expect_told(std::move(first), "enough"); // as if there had been no second
    EXPECT_EQ(error_of(writers_[1]->write_data(plans_[1], *planners_[1])).code,
              Errc::plan_not_prepared);
}

TEST_F(Lonely, ARankThatIsGoneIsNotWaitedFor) {
    writers_[1].reset();
    reactors_[1].reset();
    EXPECT_EQ(error_of(writers_[0]->write_data(plans_[0], *planners_[0])).code, Errc::io_peer_lost);
}

TEST_F(Lonely, CancelEndsTheWait) {
    auto first = writers_[0]->write_data(plans_[0], *planners_[0]);
    EXPECT_EQ(first.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
    writers_[0]->cancel();
    EXPECT_EQ(error_of(std::move(first)).code, std::errc::operation_canceled);
}

TEST_F(Lonely, PiecesMustBeThoseOfThePlan) {
    auto first = writers_[0]->write_data(plans_[0], *planners_[0]);
    auto second = writers_[1]->write_data(plans_[1], *planners_[1]);
    std::vector<WriteResults> results{first.get(), second.get()};
    auto& pieces = results[0].pieces.empty() ? results[1].pieces : results[0].pieces;
    ASSERT_FALSE(pieces.empty());
    const auto kept = pieces;
    const auto refused = [&] {
        const auto report = writers_[0]->finish({}, results);
        ASSERT_FALSE(report.has_value());
        EXPECT_EQ(report.error().code, Errc::checkpoint_results_mismatch);
    };
    pieces.pop_back();
    refused();
}

} // namespace
} // namespace safering::test
