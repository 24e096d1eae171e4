// AsyncSaver on a simulated disk. A save is held up by a limit of a byte a second, until that is lifted, so that
// what waits behind it is known and no test depends on time.
#include <safering/async_saver.hpp>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_executor.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/system_executor.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <sys/wait.h>
#include <unistd.h>

#include "disk_fixture.hpp"
#include "io/staging_pool.hpp"
#include "thread_ranks.hpp"

namespace safering::test {
namespace {

using Bytes = std::vector<std::byte>;

// Holds up whoever passes while it is shut.
class Gate {
  public:
    void shut() {
        const std::lock_guard lock(mutex_);
        open_ = false;
    }
    void open() {
        const std::lock_guard lock(mutex_);
        open_ = true;
        changed_.notify_all();
    }
    void pass() {
        std::unique_lock lock(mutex_);
        reached_ = true;
        changed_.notify_all();
        changed_.wait(lock, [this] { return open_; });
    }
    void wait_reached() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return reached_; });
    }

  private:
    std::mutex mutex_;
    std::condition_variable changed_;
    bool open_ = true;
    bool reached_ = false;
};

// The first of two ranks, of which the other is lost once the gate opens.
class LosesTheOther final : public Collectives {
  public:
    explicit LosesTheOther(Gate& gate) : gate_(gate) {}
    std::uint32_t rank() const override { return 0; }
    std::uint32_t ranks() const override { return 2; }
    Result<std::vector<Bytes>> gather(Bytes) override { return lost(); }
    Result<Bytes> scatter(std::vector<Bytes>) override { return lost(); }

  private:
    std::unexpected<Error> lost() {
        gate_.pass();
        return fail(std::make_error_code(std::errc::connection_aborted), "speak", "lost");
    }
    Gate& gate_;
};

// Gives up what it was given when it is asked on the saver's own thread.
class LosesTheSaver final : public Collectives {
  public:
    explicit LosesTheSaver(Gate& gate) : gate_(gate) {}
    std::uint32_t rank() const override { return 0; }
    std::uint32_t ranks() const override { return 2; }
    Result<std::vector<Bytes>> gather(Bytes) override { return lost(); }
    Result<Bytes> scatter(std::vector<Bytes>) override { return lost(); }

    std::shared_ptr<AsyncSaver> saver;

  private:
    std::unexpected<Error> lost() {
        gate_.pass();
        saver.reset();
        return fail(std::make_error_code(std::errc::connection_aborted), "speak", "lost");
    }
    Gate& gate_;
};

// The other rank's words do not come to that; whoever asks is told so in its own way.
class Throws final : public Collectives {
  public:
    std::uint32_t rank() const override { return 0; }
    std::uint32_t ranks() const override { return 2; }
    Result<std::vector<Bytes>> gather(Bytes) override { throw std::runtime_error("no words"); }
    Result<Bytes> scatter(std::vector<Bytes>) override { throw std::runtime_error("no words"); }
};

// Says everything to the others, and then does not hear the nth answer.
class DoesNotHear final : public Collectives {
  public:
    DoesNotHear(std::shared_ptr<Collectives> all, int nth) : all_(std::move(all)), left_(nth) {}
    std::uint32_t rank() const override { return all_->rank(); }
    std::uint32_t ranks() const override { return all_->ranks(); }
    Result<std::vector<Bytes>> gather(Bytes own) override { return all_->gather(std::move(own)); }
    Result<Bytes> scatter(std::vector<Bytes> parts) override {
        auto part = all_->scatter(std::move(parts));
        if (--left_ == 0)
            return fail(std::make_error_code(std::errc::timed_out), "speak", "no answer");
        return part;
    }

  private:
    std::shared_ptr<Collectives> all_;
    int left_;
};

class Alone final : public Collectives {
  public:
    std::uint32_t rank() const override { return 0; }
    std::uint32_t ranks() const override { return 1; }
    Result<std::vector<Bytes>> gather(Bytes own) override { return std::vector<Bytes>{own}; }
    Result<Bytes> scatter(std::vector<Bytes> parts) override { return parts.at(0); }
};

std::error_code code_of(std::future<SaveReport>& future) {
    try {
        (void)future.get();
        return {};
    } catch (const Exception& exception) {
        return exception.error().code;
    }
}

class AsyncSaves : public OnDisk {
  protected:
    AsyncSaverOptions options() {
        AsyncSaverOptions made;
        made.writer.progress = [this](std::uint64_t, std::uint64_t) { gate.pass(); };
        made.reactor = reactor;
        return made;
    }
    // Goes on for years after its first cell.
    AsyncSaverOptions held_up() {
        AsyncSaverOptions made = options();
        made.writer.limits.bytes_per_second = 1;
        return made;
    }
    // The memory is overwritten when the call has returned, as a trainer does.
    std::future<SaveReport> save(AsyncSaver& saver, const Model& model, const std::string& to,
                                 Sharding sharding = {1, 0}, std::uint32_t rank = 0) {
        Rank own = cut(model, sharding, rank);
        DefaultSavePlanner planner(own.tensors, rank);
        auto future = saver.save(to, planner.create_local_plan(), planner);
        for (auto& memory : own.memory)
            std::ranges::fill(*memory, std::byte{0x77});
        return value_or_throw(std::move(future));
    }
    std::string differs_at(const Model& model, const std::string& where) {
        return differences(model, {1, 0}, where, reactor);
    }
    using Conversation = std::vector<std::shared_ptr<Collectives>>;
    // Of two ranks, held up, without exchange.
    std::vector<std::unique_ptr<AsyncSaver>> make_savers(const Conversation& foreground,
                                                         const Conversation& background) {
        std::vector<std::unique_ptr<AsyncSaver>> made;
        for (std::uint32_t rank = 0; rank < 2; ++rank) {
            AsyncSaverOptions own = held_up();
            own.writer.exchange = ExchangeWay::off;
            own.foreground = foreground[rank];
            own.background = background[rank];
            made.push_back(std::make_unique<AsyncSaver>(own));
        }
        return made;
    }

    Gate gate;
};

TEST_F(AsyncSaves, EndsAllThatIsAskedForWhenTheRanksLoseEachOther) {
    gate.shut();
    AsyncSaverOptions made = options();
    made.foreground = std::make_shared<Alone>();
    made.background = std::make_shared<LosesTheOther>(gate);
    AsyncSaver saver(made);
    auto first = save(saver, make_model(1), "/ckpt/1");
    gate.wait_reached();
    auto second = save(saver, make_model(2), "/ckpt/2");
    gate.open();
    EXPECT_EQ(code_of(first), std::errc::connection_aborted);
    EXPECT_EQ(code_of(second), std::errc::connection_aborted);
}

TEST_F(AsyncSaves, TheLastHolderMayBeOnItsOwnThread) {
    auto conversation = std::make_shared<LosesTheSaver>(gate);
    AsyncSaverOptions made = options();
    made.foreground = std::make_shared<Alone>();
    made.background = conversation;
    auto saver = std::make_shared<AsyncSaver>(made);
    made.background.reset();
    gate.shut();
    auto future = save(*saver, make_model(22), path);
    conversation->saver = std::move(saver);
    gate.open();
    EXPECT_EQ(code_of(future), std::errc::connection_aborted);
    while (conversation.use_count() > 1) // the thread ends after its last save
        std::this_thread::yield();
}

TEST_F(AsyncSaves, WhatTheTransportThrowsIsAnError) {
    AsyncSaverOptions made = options();
    made.foreground = std::make_shared<Alone>();
    made.background = std::make_shared<Throws>();
    AsyncSaver saver(made);
    auto future = save(saver, make_model(20), path);
    try {
        (void)future.get();
        FAIL() << "the other rank was not heard";
    } catch (const Exception& exception) {
        EXPECT_NE(std::string(exception.what()).find("no words"), std::string::npos)
            << exception.what();
    }
    made.foreground = made.background = std::make_shared<Throws>();
    AsyncSaver other(made);
    EXPECT_FALSE(other.save(path, SavePlan(), [](auto, auto) { return Result<void>(); }));
}

TEST_F(AsyncSaves, WhatACopyThrowsReachesTheCaller) {
    AsyncSaver saver(options());
    const Model model = make_model(21);
    Rank own = cut(model, {1, 0}, 0);
    DefaultSavePlanner planner(own.tensors, 0);
    const auto interrupted = [](auto, auto) -> Result<void> { throw std::domain_error("stop"); };
    EXPECT_THROW((void)saver.save(path, planner.create_local_plan(), interrupted),
                 std::domain_error);
    EXPECT_THROW((void)saver.async_save(path, planner.create_local_plan(), interrupted).get(),
                 std::domain_error);
    EXPECT_TRUE(saver.wait());
    EXPECT_TRUE(disk->list("/ckpt").empty());
    EXPECT_EQ(save(saver, model, path).get().path, path);
    EXPECT_EQ(differs(model), "");
}

TEST_F(AsyncSaves, TakesCompletionTokens) {
    AsyncSaver saver(options());
    const Model model = make_model(22);
    Rank own = cut(model, {1, 0}, 0);
    DefaultSavePlanner planner(own.tensors, 0);
    const auto plan = [&] { return planner.create_local_plan(); };
    EXPECT_EQ(saver.async_save("/ckpt/1", plan(), planner).get().path, "/ckpt/1");

    std::promise<std::string> told;
    saver.async_save(
        "/ckpt/2", plan(), planner, [&](std::exception_ptr error, const SaveReport& report) {
            told.set_value(!error && reactor->running_in_this_thread() ? report.path : "");
        });
    EXPECT_EQ(told.get_future().get(), "/ckpt/2");

    boost::asio::io_context context;
    std::string saved;
    std::error_code refused;
    boost::asio::co_spawn(
        context,
        [&]() -> boost::asio::awaitable<void> {
            using boost::asio::use_awaitable;
            saved = (co_await saver.async_save("/ckpt/3", plan(), planner, use_awaitable)).path;
            try {
                co_await saver.async_save("/absent/4", plan(), planner, use_awaitable);
            } catch (const Exception& exception) {
                refused = exception.error().code;
            }
        },
        boost::asio::detached);
    context.run();
    EXPECT_EQ(saved, "/ckpt/3");
    EXPECT_EQ(refused, std::errc::no_such_file_or_directory);
    EXPECT_EQ(differs_at(model, "/ckpt/3"), "");
}

// The handler may use the saver, as no lock of its is held.
TEST_F(AsyncSaves, ASupersededOnesHandlerMayAskTheSaver) {
    AsyncSaver saver(held_up());
    Rank own = cut(make_model(23), {1, 0}, 0);
    DefaultSavePlanner planner(own.tensors, 0);
    const auto plan = [&] { return planner.create_local_plan(); };
    auto one = saver.async_save("/ckpt/1", plan(), planner);
    gate.wait_reached();
    std::error_code code;
    saver.async_save("/ckpt/2", plan(), planner,
                     boost::asio::bind_executor(boost::asio::system_executor(),
                                                [&](std::exception_ptr error, SaveReport) {
                                                    try {
                                                        std::rethrow_exception(error);
                                                    } catch (const Exception& exception) {
                                                        code = exception.error().code;
                                                    }
                                                    saver.lift_limits();
                                                }));
    auto three = saver.async_save("/ckpt/3", plan(), planner);
    EXPECT_EQ(code_of(one), std::error_code());
    EXPECT_EQ(code_of(three), std::error_code());
    EXPECT_EQ(code, Errc::save_superseded);
}

TEST_F(AsyncSaves, SavesWhatWasThereWhenItWasAsked) {
    AsyncSaver saver(options());
    const Model model = make_model(1);
    auto future = save(saver, model, path);
    const SaveReport report = future.get();
    EXPECT_EQ(report.path, path);
    EXPECT_EQ(differs(model), "");
    EXPECT_TRUE(saver.wait());
}

TEST_F(AsyncSaves, TheNewestWinsAndMemoryStaysBounded) {
    io::StagingPool& pool = io::StagingPool::of_process();
    AsyncSaver saver(held_up());
    const Model first = make_model(2), second = make_model(3), third = make_model(4),
                fourth = make_model(5);
    auto one = save(saver, first, "/ckpt/1");
    gate.wait_reached();
    auto two = save(saver, second, "/ckpt/2");
    const std::size_t memory = pool.bytes();
    auto three = save(saver, third, "/ckpt/3");
    EXPECT_EQ(code_of(two), Errc::save_superseded);
    auto four = save(saver, fourth, "/ckpt/4");
    EXPECT_EQ(code_of(three), Errc::save_superseded);
    EXPECT_EQ(pool.bytes(), memory);
    saver.lift_limits();
    EXPECT_EQ(code_of(one), std::error_code());
    EXPECT_EQ(code_of(four), std::error_code());
    EXPECT_EQ(differs_at(first, "/ckpt/1"), "");
    EXPECT_EQ(differs_at(fourth, "/ckpt/4"), "");
    EXPECT_EQ(disk->list("/ckpt").size(), 2u); // no attempt is left
}

TEST_F(AsyncSaves, CanceledSavesLeaveTheOlderCheckpoint) {
    AsyncSaver saver(held_up());
    const Model older = make_model(6), newer = make_model(7);
    ASSERT_TRUE(save_model(older));
    auto running = save(saver, newer, path);
    gate.wait_reached();
    auto waiting = save(saver, newer, path);
    saver.cancel();
    EXPECT_EQ(code_of(running), std::errc::operation_canceled);
    EXPECT_EQ(code_of(waiting), std::errc::operation_canceled);
    EXPECT_EQ(differs(older), "");
    saver.lift_limits();
    EXPECT_EQ(save(saver, newer, path).get().replaced, true);
    EXPECT_EQ(differs(newer), "");
}

TEST_F(AsyncSaves, AFailureIsTheFuturesAndNotTheNextOnes) {
    AsyncSaver saver(options());
    const Model model = make_model(8);
    ASSERT_EQ(save(saver, model, path).get().path, path);
    disk->inject({.op = Opcode::fsync, .path_contains = "model-", .after = 1, .error = EIO});
    auto failed = save(saver, make_model(9), path);
    try {
        (void)failed.get();
        FAIL() << "the fsync failed";
    } catch (const Exception& exception) {
        EXPECT_EQ(exception.error().code.value(), EIO);
        EXPECT_NE(exception.error().message().find("rank 0"), std::string::npos)
            << exception.what();
    }
    EXPECT_EQ(differs(model), "");
    EXPECT_EQ(save(saver, model, path).get().path, path);
}

// Its thread waits in the parent, whose lock and condition the child has copies of.
TEST_F(AsyncSaves, AForkedChildHasNoneOfTheParentsSaves) {
    auto saver = std::make_unique<AsyncSaver>(held_up());
    const Model model = make_model(18);
    auto running = save(*saver, model, path);
    gate.wait_reached();
    const pid_t child = ::fork();
    if (child == 0) {
        ::alarm(120); // where it hangs
        const bool idle = saver->wait() && saver->emergency_flush({}).abandoned.empty();
        saver->cancel();
        saver->lift_limits();
        const auto refused =
            saver->save(path, SavePlan(), [](auto, auto) { return Result<void>(); });
        saver.reset();
        ::_exit(idle && !refused && refused.error().code == Errc::io_forked ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    saver->lift_limits();
    EXPECT_EQ(running.get().path, path);
    EXPECT_EQ(differs(model), "");
}

TEST_F(AsyncSaves, AForkedChildLeavesTheWaitingThreadAlone) {
    auto saver = std::make_unique<AsyncSaver>(options());
    (void)save(*saver, make_model(19), path).get();
    ASSERT_TRUE(saver->wait());
    const pid_t child = ::fork();
    if (child == 0) {
        ::alarm(120);
        saver.reset();
        ::_exit(0);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
}

TEST_F(AsyncSaves, FlushLiftsLimitsAndSaysWhatWasSaved) {
    AsyncSaver saver(held_up());
    const Model model = make_model(10);
    auto future = save(saver, model, path);
    const AsyncSaver::Flushed flushed = saver.emergency_flush(std::chrono::minutes(4));
    EXPECT_EQ(flushed.saved, std::vector<std::string>{path});
    EXPECT_TRUE(flushed.abandoned.empty());
    EXPECT_EQ(future.get().path, path);
    EXPECT_EQ(differs(model), "");
}

TEST_F(AsyncSaves, FlushAbandonsWhatIsNotWholeInTime) {
    AsyncSaver saver(options());
    gate.shut();
    auto future = save(saver, make_model(11), path);
    gate.wait_reached();
    const AsyncSaver::Flushed flushed = saver.emergency_flush(std::chrono::milliseconds(1));
    EXPECT_EQ(flushed.abandoned, std::vector<std::string>{path});
    gate.open();
    EXPECT_EQ(code_of(future), std::errc::operation_canceled);
    EXPECT_TRUE(disk->list("/ckpt").empty());
}

TEST_F(AsyncSaves, PlansThatDoNotFitAreRefusedAtOnce) {
    AsyncSaver saver(options());
    SavePlan plan{
        .items = {{.fqn = "w", .type = WriteItemType::shard, .chunk = {{0}, {4}}, .size = {8}}}};
    const auto refused = saver.save(path, plan, [](auto, auto) { return Result<void>(); });
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, Errc::plan_hole);
}

class TwoRanks : public AsyncSaves {
  protected:
    TwoRanks() : savers(make_savers(make_conversation(), make_conversation())) {}
    ~TwoRanks() override {
        on_both([&](std::uint32_t rank) { savers[rank].reset(); });
    }
    template <typename F>
    void on_both(F&& call) {
        std::jthread other([&] { call(1); });
        call(0);
    }
    void lift() {
        for (auto& saver : savers)
            saver->lift_limits();
    }
    std::vector<std::future<SaveReport>> save_both(const Model& model, const std::string& to) {
        std::vector<std::future<SaveReport>> futures(2);
        on_both([&](std::uint32_t rank) {
            futures[rank] = save(*savers[rank], model, to, {2, 0}, rank);
        });
        return futures;
    }

    std::vector<std::unique_ptr<AsyncSaver>> savers;
};

TEST_F(TwoRanks, BothLearnOfTheSave) {
    const Model model = make_model(12);
    lift();
    auto futures = save_both(model, path);
    const SaveReport first = futures[0].get(), second = futures[1].get();
    EXPECT_EQ(first.attempt, second.attempt);
    EXPECT_EQ(first.tensor_bytes, second.tensor_bytes);
    ASSERT_EQ(first.ranks.size(), 2u);
    EXPECT_EQ(first.ranks[1].rank, 1u);
    EXPECT_EQ(first.ranks[1].work.requests, second.work.requests);
    EXPECT_TRUE(second.ranks.empty());
    EXPECT_EQ(differs(model), "");
}

TEST_F(TwoRanks, AgreeOnTheNewest) {
    const Model model = make_model(13);
    auto one = save_both(make_model(14), "/ckpt/1");
    gate.wait_reached();
    auto two = save_both(make_model(15), "/ckpt/2");
    auto three = save_both(model, "/ckpt/3");
    lift();
    for (std::uint32_t rank = 0; rank < 2; ++rank) {
        EXPECT_EQ(code_of(one[rank]), std::error_code());
        EXPECT_EQ(code_of(two[rank]), Errc::save_superseded);
        EXPECT_EQ(code_of(three[rank]), std::error_code());
    }
    EXPECT_EQ(differs_at(model, "/ckpt/3"), "");
}

TEST_F(TwoRanks, ACancelOnOneEndsTheSaveOnBoth) {
    auto futures = save_both(make_model(16), path);
    gate.wait_reached();
    savers[1]->cancel();
    savers[0]->lift_limits();
    EXPECT_EQ(code_of(futures[0]), std::errc::operation_canceled);
    EXPECT_EQ(code_of(futures[1]), std::errc::operation_canceled);
    EXPECT_TRUE(disk->list("/ckpt").empty());
}

TEST_F(TwoRanks, ARankThatCannotCopyFailsTheSaveOnBoth) {
    const Model model = make_model(17);
    lift();
    std::vector<std::future<SaveReport>> futures(2);
    on_both([&](std::uint32_t rank) {
        Rank own = cut(model, {2, 0}, rank);
        DefaultSavePlanner planner(own.tensors, rank);
        futures[rank] = value_or_throw(
            savers[rank]->save(path, planner.create_local_plan(), [&](auto, auto) -> Result<void> {
                if (rank == 1)
                    return fail(std::make_error_code(std::errc::not_enough_memory), "copy");
                return {};
            }));
    });
    for (auto& future : futures) {
        try {
            (void)future.get();
            FAIL() << "one rank had nothing to write";
        } catch (const Exception& exception) {
            EXPECT_NE(std::string(exception.what()).find("rank 1"), std::string::npos)
                << exception.what();
        }
    }
}

// Then rank 0 begins what this one has not planned, and will not.
TEST_F(AsyncSaves, ARankThatDidNotHearThePlanDoesNotWaitForTheSave) {
    auto foreground = make_conversation(), background = make_conversation();
    foreground[1] = std::make_shared<DoesNotHear>(foreground[1], 3);
    const auto savers = make_savers(foreground, background);
    std::vector<std::vector<Result<std::future<SaveReport>>>> saves(2);
    const auto save_three = [&](std::uint32_t rank) {
        for (const char* to : {"/ckpt/1", "/ckpt/2", "/ckpt/3"}) {
            Rank own = cut(make_model(25), {2, 0}, rank);
            DefaultSavePlanner planner(own.tensors, rank);
            saves[rank].push_back(savers[rank]->save(to, planner.create_local_plan(), planner));
            gate.wait_reached();
        }
    };
    {
        std::jthread other([&] { save_three(1); });
        save_three(0);
    }
    ASSERT_TRUE(saves[0][2]);
    ASSERT_FALSE(saves[1][2]);
    EXPECT_EQ(saves[1][2].error().code, std::errc::timed_out);
    for (const auto& saver : savers)
        saver->lift_limits();
    EXPECT_EQ(code_of(*saves[1][0]), std::error_code());
    EXPECT_TRUE(savers[1]->wait(std::chrono::steady_clock::now() + std::chrono::seconds(20)));
    EXPECT_NE(code_of(*saves[1][1]), std::error_code());
    (void)background[1]->gather({}); // what rank 0 waits for ends with the process of the other
    EXPECT_NE(code_of(*saves[0][2]), std::error_code());
}

// The one that cannot speak to the others in the background any more.
TEST_F(AsyncSaves, ARankThatIsLostTakesPartInSayingSo) {
    Gate never;
    never.shut();
    auto foreground = make_conversation();
    std::vector<std::unique_ptr<AsyncSaver>> savers;
    for (std::uint32_t rank = 0; rank < 2; ++rank) {
        AsyncSaverOptions made;
        made.reactor = reactor;
        made.writer.exchange = ExchangeWay::off;
        made.foreground = foreground[rank];
        if (rank == 0)
            made.background = std::make_shared<LosesTheOther>(never);
        else
            made.background = std::make_shared<Throws>();
        savers.push_back(std::make_unique<AsyncSaver>(made));
    }
    const auto save_on = [&](std::uint32_t rank, const std::string& to) {
        Rank own = cut(make_model(24), {2, 0}, rank);
        DefaultSavePlanner planner(own.tensors, rank);
        return savers[rank]->save(to, planner.create_local_plan(), planner);
    };
    std::vector<Result<std::future<SaveReport>>> first(2), second(2);
    {
        std::jthread other([&] {
            first[1] = save_on(1, "/ckpt/1");
            EXPECT_EQ(code_of(*first[1]), std::errc::io_error);
            second[1] = save_on(1, "/ckpt/2");
        });
        first[0] = save_on(0, "/ckpt/1");
        second[0] = save_on(0, "/ckpt/2");
    }
    for (const auto& one : second) {
        ASSERT_FALSE(one);
        EXPECT_NE(one.error().message().find("rank 1"), std::string::npos) << one.error().message();
    }
    never.open();
    EXPECT_EQ(code_of(*first[0]), std::errc::connection_aborted);
}

} // namespace
} // namespace safering::test
