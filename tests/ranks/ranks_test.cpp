// When a rank dies, hangs or sees nothing the others hear which one it was and in what, the old checkpoint stays, and
// what comes too late changes nothing.
#include <algorithm>
#include <array>
#include <csignal>
#include <filesystem>
#include <random>
#include <set>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <safering/retention.hpp>

#include "../environment.hpp"
#include "../io/backends.hpp"
#include "doomed_rank.hpp"

namespace safering::test {
namespace {

std::string_view name(Moment moment) {
    switch (moment) {
    case Moment::planning: return "planning";
    case Moment::before_writing: return "before writing";
    case Moment::while_writing: return "while writing";
    case Moment::after_writing: return "after writing";
    case Moment::at_operation: return "at an operation";
    }
    return "";
}

// What the error of a rank that is left may name as that which could not go on.
std::vector<std::string> phases_of(Moment moment) {
    switch (moment) {
    case Moment::planning: return {"plan the save"};
    case Moment::before_writing:
    case Moment::while_writing:
    case Moment::after_writing:
    case Moment::at_operation: break;
    }
    return {"exchange with", "write data", "begin to write", "hear what was written",
            "hear of the commit"};
}

// A directory with an old checkpoint, and a save into it that somebody will not live to see.
struct Case {
    explicit Case(const Doom& what) : doom(what) {
        const std::shared_ptr<Reactor> reactor = make_plain();
        value_or_throw(save(odd_model(1), {1, 0}, target(), {}, {reactor}));
    }
    static std::shared_ptr<Reactor> make_plain() {
        return value_or_throw(Reactor::create({.backend = BackendChoice::threads,
                                               .buffer_bytes = std::size_t{8} << 10,
                                               .buffer_count = 3}));
    }
    void begin() { ranks = begin_doomed_save(target(), doom); }
    std::string target() const { return directory / "step"; }
    std::string text() const {
        return fmt::format("rank {} {} {}, exchange {}", doom.rank,
                           doom.fate == Fate::killed    ? "killed"
                           : doom.fate == Fate::stopped ? "stopped"
                                                        : "blind",
                           name(doom.moment), name(doom.exchange));
    }
    std::set<std::string> names() const {
        std::set<std::string> found;
        for (const auto& entry : std::filesystem::directory_iterator(directory.path()))
            found.insert(entry.path().filename());
        return found;
    }

    // Those that are left say which rank it was and in what; rank 0 at least where that is heard by waiting only.
    void check_others() {
        for (std::uint32_t rank = 0; rank < rank_count; ++rank) {
            if (rank == doom.rank)
                continue;
            const std::string said = wait_for_end(ranks[rank]);
            const auto names = [&](std::uint32_t other) {
                return said.find(fmt::format("rank {}", other)) != std::string::npos;
            };
            EXPECT_TRUE(names(doom.rank)) << "rank " << rank << " said: " << said;
            EXPECT_TRUE(std::ranges::any_of(
                phases_of(doom.moment),
                [&](const std::string& phase) { return said.find(phase) != std::string::npos; }))
                << "rank " << rank << " said: " << said;
        }
        EXPECT_EQ(differences(odd_model(1), {1, 0}, target(), make_plain()), "");
    }
    // What nobody will end is taken away on demand.
    void recover() const {
        const auto reactor = make_plain();
        const auto recovered = recover_checkpoint(target(), *reactor, StaleAttempts::all);
        ASSERT_TRUE(recovered) << recovered.error().message();
        EXPECT_TRUE(recovered->failures.empty());
        EXPECT_EQ(names(), std::set<std::string>{"step"});
    }
    // A later run saves into the same target; with that all traces are gone.
    void save_again(std::uint64_t seed) const {
        save_over(seed);
        check_saved(seed);
    }
    void save_over(std::uint64_t seed) const {
        const auto saved = save(odd_model(seed), {1, 0}, target(), {}, {make_plain()});
        ASSERT_TRUE(saved) << saved.error().message();
    }
    bool holds(std::uint64_t seed) const {
        return differences(odd_model(seed), {1, 0}, target(), make_plain()).empty();
    }
    void check_saved(std::uint64_t seed) const {
        EXPECT_EQ(differences(odd_model(seed), {1, 0}, target(), make_plain()), "");
        EXPECT_EQ(names(), std::set<std::string>{"step"});
    }

    Doom doom;
    TemporaryDirectory directory;
    std::vector<RankProcess> ranks;
};

using Cases = std::vector<std::unique_ptr<Case>>;

// All at once, since most of them only wait.
Cases begin_all(const std::vector<Doom>& dooms) {
    Cases cases;
    for (const Doom& doom : dooms)
        cases.push_back(std::make_unique<Case>(doom));
    for (auto& one : cases)
        one->begin();
    return cases;
}

constexpr std::array all_moments{Moment::planning, Moment::before_writing, Moment::while_writing,
                                 Moment::after_writing};
constexpr std::array both_ways{ExchangeWay::off, ExchangeWay::shared_memory};

TEST(Ranks, OneIsKilled) {
    std::vector<Doom> dooms;
    for (const std::uint32_t rank : {0u, 2u})
        for (const Moment moment : all_moments)
            for (const ExchangeWay way : both_ways)
                dooms.push_back({rank, moment, Fate::killed, way});
    for (const auto& one : begin_all(dooms)) {
        SCOPED_TRACE(one->text());
        one->check_others();
        EXPECT_EQ(wait_for_end(one->ranks[one->doom.rank]), "");
        one->recover();
        one->save_again(3);
    }
}

// At any operation; the next run begins when those that are left have said what they say, or at once.
TEST(Ranks, OneIsKilledAtARandomOperation) {
    const std::uint64_t seed = from_environment("RANKS_SEED", 1);
    const std::uint64_t kills = from_environment("RANKS_KILLS", 24);
    std::mt19937_64 random(seed);
    std::uint64_t met = 0;
    for (std::uint64_t kill = 0; kill < kills; ++kill) {
        const bool at_once = random() % 2 == 0;
        Case one({.rank = static_cast<std::uint32_t>(random() % rank_count),
                  .moment = Moment::at_operation,
                  .fate = Fate::killed,
                  .exchange = both_ways[random() % 2],
                  .operation = 1 + random() % 20});
        SCOPED_TRACE(fmt::format("kill {} of RANKS_SEED={}: {}, operation {}", kill, seed,
                                 one.text(), one.doom.operation));
        one.begin();
        const std::string victim = wait_for_end(one.ranks[one.doom.rank]);
        met += victim.empty();
        if (at_once)
            one.save_over(3);
        for (std::uint32_t rank = 0; rank < rank_count; ++rank)
            if (rank != one.doom.rank) {
                EXPECT_NE(wait_for_end(one.ranks[rank]), "");
            }
        EXPECT_TRUE(at_once ? one.holds(3) : one.holds(1) || one.holds(2));
        one.save_again(4);
    }
    EXPECT_GT(met, kills / 4);
    fmt::print("{} of {} were killed before they had ended\n", met, kills);
}

// And goes on when others have saved into the target: what it still writes, and if it is rank 0 even its commit, is of
// a save that is past.
TEST(Ranks, OneHangsAndComesTooLate) {
    std::vector<Doom> dooms;
    for (const std::uint32_t rank : {0u, 2u})
        for (const Moment moment : all_moments)
            dooms.push_back(
                {rank, moment, Fate::stopped,
                 moment == Moment::while_writing ? ExchangeWay::off : ExchangeWay::shared_memory});
    const Cases cases = begin_all(dooms);
    for (const auto& one : cases) {
        SCOPED_TRACE(one->text());
        one->check_others();
        one->save_again(3);
    }
    for (const auto& one : cases) // all go on before the first is waited for
        ::kill(one->ranks[one->doom.rank].process, SIGCONT);
    for (const auto& one : cases) {
        SCOPED_TRACE(one->text());
        const std::string said = wait_for_end(one->ranks[one->doom.rank]);
        EXPECT_NE(said, "saved");
        EXPECT_NE(said, "");
        one->check_saved(3);
        one->save_again(4);
    }
}

// What it still writes meets a save into the same target, which takes its attempt away.
TEST(Ranks, OneGoesOnWhileANewRunSaves) {
    std::vector<Doom> dooms;
    for (const Moment moment :
         {Moment::before_writing, Moment::while_writing, Moment::after_writing})
        dooms.insert(dooms.end(), 3, {2, moment, Fate::stopped, ExchangeWay::off});
    // All have written, so that it may still commit; the new run commits at about that time.
    dooms.insert(dooms.end(), 6, {0, Moment::after_writing, Fate::stopped, ExchangeWay::off});
    const Cases cases = begin_all(dooms);
    for (const auto& one : cases) {
        SCOPED_TRACE(one->text());
        one->check_others();
    }
    for (const auto& one : cases) {
        SCOPED_TRACE(one->text());
        RankProcess& goes_on = one->ranks[one->doom.rank];
        ::kill(goes_on.process, SIGCONT);
        const bool may_commit = one->doom.rank == 0;
        const auto saved = save(odd_model(3), {1, 0}, one->target(), {}, {Case::make_plain()});
        const std::string said = wait_for_end(goes_on);
        EXPECT_NE(said, "");
        const bool late = said == "saved";
        EXPECT_TRUE(saved || (may_commit && late)) << said << "; " << saved.error().message();
        EXPECT_TRUE(may_commit || !late);
        EXPECT_TRUE((saved && one->holds(3)) || (late && one->holds(2))) << said;
        one->save_again(4);
    }
}

TEST(Ranks, OneDoesNotSeeTheDirectory) {
    std::vector<Doom> dooms;
    for (const std::uint32_t rank : {0u, 2u})
        for (const ExchangeWay way : both_ways)
            dooms.push_back({rank, Moment::while_writing, Fate::blind, way});
    for (const auto& one : begin_all(dooms)) {
        SCOPED_TRACE(one->text());
        const std::string said = wait_for_end(one->ranks[one->doom.rank]);
        EXPECT_NE(said.find(fmt::format("rank {}", one->doom.rank)), std::string::npos) << said;
        EXPECT_NE(said.find("does not see it"), std::string::npos) << said;
        one->check_others();
        one->save_again(3);
    }
}

} // namespace
} // namespace safering::test
