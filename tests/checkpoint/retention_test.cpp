// The checkpoints of a run: listed, the newest found, old ones removed, cut-off saves recovered.
#include <algorithm>

#include <safering/retention.hpp>

#include "checkpoint/attempt.hpp"
#include "checkpoint/attempt_directory.hpp"
#include "checkpoint/removal.hpp"
#include "checkpoint/step_name.hpp"
#include "disk_fixture.hpp"

namespace safering::test {
namespace {

using checkpoint::StepName;

TEST(StepNames, MatchAsAWhole) {
    using checkpoint::parse_step_name;
    EXPECT_EQ(parse_step_name("step-1000"), (StepName{"step", 1000}));
    EXPECT_EQ(parse_step_name("global_step_0007"), (StepName{"global_step", 7}));
    EXPECT_EQ(parse_step_name("a-b-999999999999999999"), (StepName{"a-b", 999999999999999999}));
    for (const char* name :
         {"", "step", "step-", "-5", "5", "step1000", ".step-5", "step-5 ", "step-5a", "step-0x5",
          "step-9999999999999999999", "a/step-5", "step+5"})
        EXPECT_FALSE(parse_step_name(name)) << name;
    EXPECT_FALSE(parse_step_name(std::string_view("a\0b-5", 5)));
}

TEST(StepNames, HiddenOnesMatchAsAWhole) {
    using namespace checkpoint;
    const std::string id = make_attempt_id();
    const auto parsed =
        parse_hidden_name(hidden_name("step-5", id, removal_suffix), removal_suffix);
    ASSERT_TRUE(parsed);
    EXPECT_EQ(parsed->target, "step-5");
    EXPECT_EQ(parsed->id, id);
    EXPECT_EQ(parse_hidden_name(attempt_directory_name("a.b", id), attempt_suffix)->target, "a.b");
    for (const std::string& name :
         {"." + id + ".tmp", ".." + id + ".tmp", "step." + id + ".tmp", ".step." + id + ".tmp ",
          ".step." + id.substr(1) + ".tmp", ".step." + id + ".removed", std::string(".tmp")})
        EXPECT_FALSE(parse_hidden_name(name, attempt_suffix)) << name;
}

class Retention : public OnDisk {
  protected:
    std::string at(const std::string& name) const { return "/ckpt/" + name; }
    Result<SaveReport> save_step(const std::string& name, std::uint64_t seed = 1) {
        return save(small_model(seed), {2, 0}, at(name), {}, {reactor});
    }
    void save_steps(const std::vector<std::string>& names) {
        for (const std::string& name : names) {
            auto saved = save_step(name);
            ASSERT_TRUE(saved) << saved.error().message();
        }
    }
    std::string newest(const std::string& prefix = {}) {
        const auto found = latest("/ckpt", *reactor, prefix);
        return !found ? found.error().message() : *found ? (*found)->name : "";
    }
    PruneReport pruned(const RetentionPolicy& policy, DryRun dry_run = DryRun::no) {
        auto report = prune("/ckpt", *reactor, policy, dry_run);
        EXPECT_TRUE(report) << report.error().message();
        return report ? *report : PruneReport{};
    }
    void damage(const std::string& name) {
        const std::string file = at(name) + "/model-00001-of-00001.safetensors";
        disk->write_text(file, disk->read_text(file).substr(1));
    }
    StepCheckpoint listed(const std::string& name) {
        const auto list = list_checkpoints("/ckpt", *reactor);
        const auto found = std::ranges::find(list->checkpoints, name, &StepCheckpoint::name);
        EXPECT_NE(found, list->checkpoints.end()) << name;
        return found == list->checkpoints.end() ? StepCheckpoint{} : *found;
    }
    // Ends the disk's life in the middle of a save over `name`, at the first record of this kind.
    void crash_in_save(const std::string& name, Opcode op, const std::string& path_contains) {
        const std::size_t begin = disk->log_size();
        ASSERT_TRUE(save_step(name, 7));
        const auto log = disk->log();
        for (std::size_t i = begin; i < log.size(); ++i)
            if (log[i].op == op && log[i].path.find(path_contains) != std::string::npos) {
                disk = disk->crash_after(i + 1, {CrashPolicy::Kind::keep_all, 0});
                reactor = make_reactor(disk);
                return;
            }
        FAIL() << "no such record";
    }
};

TEST_F(Retention, ListsStepsByPrefixAndNumber) {
    save_steps({"step-900", "step-1000", "best-3"});
    disk->write_text(at("step-7/model.safetensors"), "somebody else's");
    disk->make_directory(at("notes"));
    disk->make_symlink(at("step-8"), "step-900");
    disk->write_text(at("step-9"), "a file");
    const auto list = list_checkpoints("/ckpt/", *reactor);
    ASSERT_TRUE(list) << list.error().message();
    std::vector<std::string> names;
    for (const StepCheckpoint& checkpoint : list->checkpoints)
        names.push_back(checkpoint.name);
    EXPECT_EQ(names, (std::vector<std::string>{"best-3", "step-7", "step-900", "step-1000"}));
    const StepCheckpoint& whole = list->checkpoints[3];
    EXPECT_EQ(whole.state, CheckpointState::whole);
    EXPECT_EQ(whole.step, 1000u);
    EXPECT_EQ(whole.path, "/ckpt/step-1000");
    EXPECT_EQ(whole.files, 1u);
    EXPECT_EQ(whole.bytes,
              disk->read_file("/ckpt/step-1000/model-00001-of-00001.safetensors").size());
    EXPECT_GT(whole.saved_ms, list->checkpoints[2].saved_ms - 1);
    EXPECT_TRUE(whole.others.empty());
    EXPECT_EQ(list->checkpoints[1].state, CheckpointState::foreign);
    EXPECT_EQ(list->directory, "/ckpt");
    EXPECT_FALSE(list_checkpoints("/absent", *reactor));
}

TEST_F(Retention, TellsWhyACheckpointIsNotWhole) {
    save_steps({"step-1", "step-2", "step-3", "step-4"});
    damage("step-1");
    ASSERT_FALSE(
        reactor->wait({.op = Opcode::unlink, .path = at("step-2/model.safetensors.index.json")})
            .error);
    disk->write_text(at("step-3/safering.manifest.json"), "{}");
    disk->write_text(at("step-4/config.json"), "{}");
    EXPECT_EQ(listed("step-1").state, CheckpointState::damaged);
    EXPECT_NE(listed("step-1").reason.find("model-00001"), std::string::npos);
    EXPECT_EQ(listed("step-2").state, CheckpointState::damaged);
    EXPECT_NE(listed("step-2").reason.find("is missing"), std::string::npos);
    EXPECT_EQ(listed("step-3").state, CheckpointState::foreign);
    EXPECT_EQ(listed("step-4").state, CheckpointState::whole);
    EXPECT_EQ(listed("step-4").others, std::vector<std::string>{"config.json"});
}

TEST_F(Retention, TheNewestIsWholeAndOfTheHighestStep) {
    EXPECT_EQ(newest(), "");
    save_steps({"step-1000", "step-900", "best-5"});
    EXPECT_EQ(newest(), "step-1000");
    EXPECT_EQ(newest("best"), "best-5");
    EXPECT_EQ(newest("absent"), "");
    damage("step-1000");
    EXPECT_EQ(newest(), "step-900");
}

TEST_F(Retention, ThePointerIsFollowedWhereItIsRight) {
    save_steps({"step-1000", "step-600"}); // set back from 1000 to 500, and on
    EXPECT_EQ(newest(), "step-1000");
    ASSERT_TRUE(set_latest(at("step-600"), *reactor));
    EXPECT_EQ(disk->read_text(at("latest")), "step-600\n");
    EXPECT_EQ(newest(), "step-600");
    save_steps({"step-700"}); // cut off before set_latest
    EXPECT_EQ(newest(), "step-700");
    ASSERT_TRUE(set_latest(at("step-700/"), *reactor));
    save_steps({"step-600"}); // converted in place, say
    EXPECT_EQ(newest(), "step-700");
    damage("step-700");
    EXPECT_EQ(newest(), "step-1000");
    for (const char* text :
         {"step-5", "../step-600", "/ckpt/step-600", "", "step-600\n\n", "notes"}) {
        disk->write_text(at("latest"), text);
        EXPECT_EQ(newest(), "step-1000") << text;
    }
    disk->write_text(at("latest"), "step-600"); // without a line end, as others write it
    EXPECT_EQ(newest(), "step-600");
}

TEST_F(Retention, ThePointerIsSetOnlyToWholeCheckpointsAndOnlyOverOurs) {
    save_steps({"step-1", "step-2"});
    damage("step-1");
    for (const char* name : {"step-1", "step-3", "notes"}) {
        const auto set = set_latest(at(name), *reactor);
        ASSERT_FALSE(set) << name;
        EXPECT_EQ(set.error().code, std::string_view(name) == "step-1"
                                        ? Errc::checkpoint_incomplete
                                        : Errc::checkpoint_not_found);
    }
    EXPECT_FALSE(disk->exists(at("latest")));
    disk->write_text(at("latest"), "a diary of many lines\nand more");
    EXPECT_EQ(set_latest(at("step-2"), *reactor).error().code, Errc::checkpoint_conflict);
    EXPECT_EQ(disk->list("/ckpt").size(), 3u);
    disk = std::make_shared<SimulatedDisk>();
    disk->make_directory("/ckpt");
    reactor = make_reactor(disk);
    save_steps({"step-2"});
    disk->make_symlink(at("latest"), "step-2");
    EXPECT_EQ(set_latest(at("step-2"), *reactor).error().code, Errc::checkpoint_conflict);
}

TEST_F(Retention, ThePointerIsTheOldOrTheNewAfterACrash) {
    save_steps({"step-1", "step-2"});
    ASSERT_TRUE(set_latest(at("step-1"), *reactor));
    const std::size_t first = disk->log_size();
    ASSERT_TRUE(set_latest(at("step-2"), *reactor));
    for (std::size_t records = first; records <= disk->log_size(); ++records)
        for (std::uint64_t seed = 0; seed < 8; ++seed) {
            const auto after = disk->crash_after(records, {CrashPolicy::Kind::random_torn, seed});
            const std::string text = after->read_text(at("latest"));
            EXPECT_TRUE(text == "step-2\n" || (text == "step-1\n" && records < disk->log_size()))
                << records << " seed " << seed << ": " << text;
            // The next call removes what is left.
            ASSERT_TRUE(set_latest(at("step-1"), *make_reactor(after)));
            EXPECT_EQ(after->list("/ckpt"),
                      (std::vector<std::string>{"latest", "step-1", "step-2"}));
        }
}

TEST_F(Retention, PruneKeepsWhatThePolicySays) {
    save_steps({"step-100", "step-200", "step-300", "step-400", "step-500", "best-1", "best-2"});
    const RetentionPolicy policy{.keep_last = 2, .keep_every = 200};
    const PruneReport planned = pruned(policy, DryRun::yes);
    EXPECT_EQ(disk->list("/ckpt").size(), 7u);
    const PruneReport report = pruned(policy);
    ASSERT_EQ(report.removed.size(), 2u);
    EXPECT_EQ(planned.removed.size(), 2u);
    EXPECT_EQ(report.removed[0].name, "step-100");
    EXPECT_EQ(report.removed[1].name, "step-300");
    EXPECT_TRUE(report.failures.empty());
    EXPECT_EQ(disk->list("/ckpt"),
              (std::vector<std::string>{"best-1", "best-2", "step-200", "step-400", "step-500"}));
    for (const PruneReport::Kept& kept : report.kept)
        EXPECT_NE(kept.reason, "") << kept.checkpoint.name;
    // 0 never means all.
    EXPECT_EQ(pruned({.keep_last = 0, .prefix = "step"}).removed.size(), 2u);
    EXPECT_EQ(disk->list("/ckpt"), (std::vector<std::string>{"best-1", "best-2", "step-500"}));
}

TEST_F(Retention, PruneNeverTouchesTheNewestWholeOneOrThePointersOrWhatIsNotOurs) {
    save_steps({"step-1", "step-2", "step-3", "step-4", "step-5"});
    damage("step-5");
    damage("step-2");
    disk->write_text(at("step-0/model.safetensors"), "somebody else's");
    disk->write_text(at("step-6"), "a file");
    disk->make_symlink(at("step-7"), "step-3");
    ASSERT_TRUE(set_latest(at("step-1"), *reactor));
    const PruneReport report = pruned({});
    std::vector<std::string> removed;
    for (const StepCheckpoint& checkpoint : report.removed)
        removed.push_back(checkpoint.name);
    EXPECT_EQ(removed, (std::vector<std::string>{"step-2", "step-3"}));
    EXPECT_EQ(disk->list("/ckpt"), (std::vector<std::string>{"latest", "step-0", "step-1", "step-4",
                                                             "step-5", "step-6", "step-7"}));
}

TEST_F(Retention, PruneLeavesWhatHoldsFilesOfOthersUnlessTold) {
    save_steps({"step-1", "step-2", "step-3"});
    disk->write_text(at("step-1/config.json"), "{}");
    disk->write_text(at("step-1/logs/today/train.log"), "...");
    disk->write_text("/elsewhere/kept", "kept");
    disk->make_symlink(at("step-1/logs/link"), "/elsewhere");
    EXPECT_EQ(pruned({}).removed.size(), 1u);
    EXPECT_TRUE(disk->exists(at("step-1/config.json")));
    EXPECT_EQ(listed("step-1").state, CheckpointState::whole);
    EXPECT_EQ(pruned({.others = RetentionPolicy::Others::remove}).removed.size(), 1u);
    EXPECT_EQ(disk->list("/ckpt"), std::vector<std::string>{"step-3"});
    EXPECT_EQ(disk->read_text("/elsewhere/kept"), "kept");
}

TEST_F(Retention, PruneIsAllOrNothingAndGoneOnWithAfterACrash) {
    save_steps({"step-1", "step-2", "step-3"});
    const std::size_t first = disk->log_size();
    ASSERT_EQ(pruned({}).removed.size(), 2u);
    for (std::size_t records = first; records <= disk->log_size(); ++records)
        for (const auto kind : {CrashPolicy::Kind::drop_unsynced, CrashPolicy::Kind::keep_all,
                                CrashPolicy::Kind::random_subset})
            for (std::uint64_t seed = 0; seed < 4; ++seed) {
                const auto after = disk->crash_after(records, {kind, seed});
                const auto other = make_reactor(after);
                const auto list = list_checkpoints("/ckpt", *other);
                ASSERT_TRUE(list);
                for (const StepCheckpoint& checkpoint : list->checkpoints)
                    ASSERT_EQ(checkpoint.state, CheckpointState::whole)
                        << records << " seed " << seed << ' ' << checkpoint.reason;
                const auto again = prune("/ckpt", *other, {});
                ASSERT_TRUE(again && again->failures.empty())
                    << records << " seed " << seed << ' '
                    << (again ? again->failures[0].message() : "");
                ASSERT_EQ(after->list("/ckpt"), std::vector<std::string>{"step-3"});
            }
}

TEST_F(Retention, AFailureIsToldAndTheRestGoesOn) {
    save_steps({"step-1", "step-2", "step-3"});
    disk->inject({.op = Opcode::rename, .path_contains = "step-1"});
    const PruneReport report = pruned({});
    EXPECT_EQ(report.failures.size(), 1u);
    EXPECT_EQ(report.removed.size(), 1u);
    EXPECT_EQ(disk->list("/ckpt"), (std::vector<std::string>{"step-1", "step-3"}));
}

TEST_F(Retention, ACheckpointThatIsSavedMeanwhileStays) {
    save_steps({"step-1"});
    const StepCheckpoint before = listed("step-1");
    ASSERT_TRUE(save_step("step-1", 9));
    const auto removed =
        checkpoint::remove_checkpoint(*reactor, "/ckpt", before, RetentionPolicy::Others::remove);
    ASSERT_FALSE(removed);
    EXPECT_EQ(removed.error().code, Errc::checkpoint_conflict);
    EXPECT_EQ(disk->list("/ckpt"), std::vector<std::string>{"step-1"});
    EXPECT_EQ(differences(small_model(9), {1, 0}, at("step-1"), reactor), "");
}

// Whoever renamed it was cut off before it saw that another save had come into it.
TEST_F(Retention, ASaveThatAHalfRemovalCaughtGetsItsNameBack) {
    save_steps({"step-1", "step-2"});
    const StepCheckpoint before = listed("step-1");
    ASSERT_TRUE(save_step("step-1", 9));
    const std::string hidden =
        checkpoint::hidden_name("step-1", before.attempt, checkpoint::removal_suffix);
    ASSERT_FALSE(
        reactor->wait({.op = Opcode::rename, .path = at("step-1"), .new_path = at(hidden)}).error);
    const PruneReport report = pruned({.keep_last = 2});
    ASSERT_EQ(report.failures.size(), 1u);
    EXPECT_EQ(report.failures[0].code, Errc::checkpoint_conflict);
    EXPECT_EQ(differences(small_model(9), {1, 0}, at("step-1"), reactor), "");
    EXPECT_TRUE(pruned({}).failures.empty()); // and goes when it is its turn
    EXPECT_EQ(disk->list("/ckpt"), std::vector<std::string>{"step-2"});
}

// Nothing that the system would not say makes a checkpoint one that may go.
TEST_F(Retention, WhatCouldNotBeLookedAtStaysAndIsNotPassedOver) {
    for (const auto& [op, name] :
         std::initializer_list<std::pair<Opcode, std::string>>{{Opcode::stat, "/model-"},
                                                               {Opcode::open, "/safering.manifest"},
                                                               {Opcode::read, "/safering.manifest"},
                                                               {Opcode::list, ""},
                                                               {Opcode::list, "/.safering.redo"}}) {
        save_steps({"step-1", "step-2", "step-3", "step-4", "step-5"});
        disk->inject({.op = op,
                      .path_contains = "step-4" + name,
                      .times = Fault::for_ever,
                      .error = ESTALE});
        EXPECT_EQ(listed("step-4").state, CheckpointState::unreadable) << name;
        EXPECT_EQ(listed("step-4").error.value(), ESTALE);
        EXPECT_EQ(newest(), "step-5");
        EXPECT_EQ(pruned({.keep_last = 3}).removed.size(), 1u);
        EXPECT_EQ(disk->list("/ckpt"),
                  (std::vector<std::string>{"step-2", "step-3", "step-4", "step-5"}));
        ASSERT_TRUE(checkpoint::remove_tree(*reactor, at("step-5")));
        const auto found = latest("/ckpt", *reactor);
        ASSERT_FALSE(found);
        EXPECT_EQ(found.error().code.value(), ESTALE);
        EXPECT_EQ(found.error().file, at("step-4"));
        EXPECT_EQ(set_latest(at("step-4"), *reactor).error().code.value(), ESTALE);
        EXPECT_TRUE(latest("/ckpt", *reactor, "other"));
        disk->clear_faults();
        EXPECT_EQ(newest(), "step-4");
    }
}

// As readers follow them, where files were moved to another disk or are kept once for several checkpoints.
TEST_F(Retention, FilesMayBeLinks) {
    save_steps({"step-1", "step-2", "step-3"});
    const std::string file = "/model-00001-of-00001.safetensors";
    const auto link = [&](const std::string& name) {
        disk->make_directory("/moved");
        ASSERT_FALSE(
            reactor
                ->wait(
                    {.op = Opcode::rename, .path = at(name) + file, .new_path = "/moved/" + name})
                .error);
        disk->make_symlink(at(name) + file, "/moved/" + name);
    };
    link("step-2");
    link("step-3");
    EXPECT_EQ(listed("step-3").state, CheckpointState::whole) << listed("step-3").reason;
    EXPECT_EQ(newest(), "step-3");
    EXPECT_EQ(pruned({.keep_last = 2}).removed.size(), 1u);
    EXPECT_EQ(disk->list("/ckpt"), (std::vector<std::string>{"step-2", "step-3"}));
    EXPECT_EQ(differences(small_model(1), {1, 0}, at("step-3"), reactor), "");
    EXPECT_EQ(pruned({}).removed.size(), 1u);
    EXPECT_EQ(disk->list("/moved"), (std::vector<std::string>{"step-2", "step-3"}));
    ASSERT_FALSE(reactor->wait({.op = Opcode::unlink, .path = "/moved/step-3"}).error);
    EXPECT_EQ(listed("step-3").state, CheckpointState::damaged);
    disk->make_directory("/moved/step-3");
    EXPECT_EQ(listed("step-3").state, CheckpointState::damaged);
}

// Whoever renamed it was cut off before it saw the switch.
TEST_F(Retention, ASwitchInAHalfRemovedCheckpointIsFinishedUnderItsName) {
    const std::string hidden = checkpoint::hidden_name("step-1", checkpoint::make_attempt_id(),
                                                       checkpoint::removal_suffix);
    for (const bool by_prune : {true, false}) {
        save_steps({"step-1", "step-2"});
        crash_in_save("step-1", Opcode::rename, "model-00001");
        ASSERT_FALSE(
            reactor->wait({.op = Opcode::rename, .path = at("step-1"), .new_path = at(hidden)})
                .error);
        std::vector<Error> failures;
        if (by_prune)
            failures = pruned({.keep_last = 2}).failures;
        else
            failures = recover_checkpoint(at("step-1"), *reactor, StaleAttempts::all)->failures;
        ASSERT_EQ(failures.size(), 1u);
        EXPECT_EQ(failures[0].code, Errc::checkpoint_conflict);
        EXPECT_EQ(failures[0].file, at("step-1"));
        EXPECT_EQ(disk->list("/ckpt"), (std::vector<std::string>{"step-1", "step-2"}));
        EXPECT_EQ(differences(small_model(7), {1, 0}, at("step-1"), reactor), "");
    }
}

TEST_F(Retention, ASwitchInAHalfRemovedCheckpointStaysWhereItsNameIsTaken) {
    const std::string hidden = checkpoint::hidden_name("step-1", checkpoint::make_attempt_id(),
                                                       checkpoint::removal_suffix);
    save_steps({"step-1"});
    crash_in_save("step-1", Opcode::rename, "model-00001");
    ASSERT_FALSE(
        reactor->wait({.op = Opcode::rename, .path = at("step-1"), .new_path = at(hidden)}).error);
    save_steps({"step-1"});
    const auto files = disk->list(at(hidden));
    const PruneReport report = pruned({});
    ASSERT_EQ(report.failures.size(), 1u);
    EXPECT_NE(report.failures[0].message().find(hidden), std::string::npos);
    EXPECT_EQ(disk->list(at(hidden)), files);
    EXPECT_EQ(differences(small_model(1), {1, 0}, at("step-1"), reactor), "");
}

TEST_F(Retention, AttemptsAreListedAndRecoveredOnlyWhereOvertaken) {
    save_steps({"step-1"});
    crash_in_save("step-1", Opcode::allocate, "");
    auto list = list_checkpoints("/ckpt", *reactor);
    ASSERT_EQ(list->leftovers.size(), 1u);
    EXPECT_EQ(list->leftovers[0].kind, Leftover::Kind::attempt);
    EXPECT_EQ(list->leftovers[0].target, "step-1");
    EXPECT_FALSE(list->leftovers[0].stale);
    save_steps({"step-2"});
    EXPECT_TRUE(pruned({}).removed.empty()); // step-1 may be being saved again
    auto report = recover_checkpoint(at("step-1"), *reactor);
    ASSERT_TRUE(report);
    EXPECT_TRUE(report->removed.empty());
    EXPECT_EQ(report->left.size(), 1u);
    report = recover_checkpoint(at("step-1"), *reactor, StaleAttempts::all);
    ASSERT_TRUE(report);
    EXPECT_EQ(report->removed.size(), 1u);
    EXPECT_EQ(disk->list("/ckpt"), (std::vector<std::string>{"step-1", "step-2"}));
    // One that a later save has overtaken goes without asking.
    const std::string old = checkpoint::attempt_directory_name("step-1", std::string(32, '0'));
    disk->make_directory(at(old));
    EXPECT_TRUE(list_checkpoints("/ckpt", *reactor)->leftovers.at(0).stale);
    report = recover_checkpoint(at("step-1"), *reactor);
    EXPECT_EQ(report->removed.size(), 1u);
    EXPECT_FALSE(disk->exists(at(old)));
}

// Its record says where it was to be moved to, and was committed nowhere. Each clean-up that fails leaves more to be
// cleaned up by the next.
TEST_F(Retention, AnAttemptThatWasCutOffBeforeItsCommitIsRemovedInTheEnd) {
    save_steps({"step-1"});
    crash_in_save("step-1", Opcode::fsync, "/.safering.redo/");
    const auto leftovers = list_checkpoints("/ckpt", *reactor)->leftovers;
    ASSERT_EQ(leftovers.size(), 1u);
    EXPECT_EQ(leftovers[0].kind, Leftover::Kind::attempt);
    ASSERT_TRUE(disk->exists(leftovers[0].path + "/.safering.redo"));
    disk->inject({.op = Opcode::list,
                  .path_contains = at("step-1/.safering.redo"),
                  .times = Fault::for_ever,
                  .error = EIO});
    for (int i = 0; i < 4; ++i)
        EXPECT_EQ(
            checkpoint::remove_attempts(*reactor, "/ckpt", {leftovers[0].name}).failures.size(),
            1u);
    disk->clear_faults();
    const auto report = recover_checkpoint(at("step-1"), *reactor, StaleAttempts::all);
    ASSERT_TRUE(report);
    EXPECT_EQ(report->removed.size(), 1u);
    EXPECT_EQ(disk->list("/ckpt"), std::vector<std::string>{"step-1"});
    EXPECT_EQ(differences(small_model(1), {1, 0}, at("step-1"), reactor), "");
}

TEST_F(Retention, ASwitchThatWasCutOffIsShownAndFinished) {
    save_steps({"step-1", "step-2"});
    crash_in_save("step-1", Opcode::rename, "model-00001");
    EXPECT_EQ(listed("step-1").state, CheckpointState::switching) << listed("step-1").reason;
    EXPECT_EQ(list_checkpoints("/ckpt", *reactor)->leftovers.at(0).kind, Leftover::Kind::switching);
    EXPECT_TRUE(pruned({}).removed.empty());
    const auto report = recover_checkpoint(at("step-1"), *reactor);
    ASSERT_TRUE(report) << report.error().message();
    EXPECT_TRUE(report->switch_finished);
    EXPECT_EQ(listed("step-1").state, CheckpointState::whole);
    EXPECT_EQ(disk->list("/ckpt"), (std::vector<std::string>{"step-1", "step-2"}));
    EXPECT_EQ(differences(small_model(7), {1, 0}, at("step-1"), reactor), "");
}

TEST_F(Retention, AnAttemptThatARenamedCheckpointNeedsIsNotRemoved) {
    save_steps({"run"});
    crash_in_save("run", Opcode::rename, "model-00001");
    ASSERT_FALSE(
        reactor->wait({.op = Opcode::rename, .path = at("run"), .new_path = at("renamed")}).error);
    // Not even where it cannot be asked now.
    for (const int error : {EMFILE, EIO, 0}) {
        if (error != 0)
            disk->inject({.op = Opcode::list,
                          .path_contains = "renamed/.safering.redo",
                          .times = Fault::for_ever,
                          .error = error});
        const auto report = recover_checkpoint(at("run"), *reactor, StaleAttempts::all);
        disk->clear_faults();
        ASSERT_TRUE(report);
        EXPECT_EQ(report->removed.size(), 0u);
        EXPECT_EQ(report->failures.size(), error == 0 ? 0u : 1u);
        EXPECT_EQ(report->left.size(), error == 0 ? 1u : 0u);
    }
    EXPECT_EQ(differences(small_model(7), {1, 0}, at("renamed"), reactor), "");
}

TEST_F(Retention, WithNothingToRecoverNothingHappens) {
    const auto report = recover_checkpoint(at("absent"), *reactor, StaleAttempts::all);
    ASSERT_TRUE(report) << report.error().message();
    EXPECT_TRUE(report->removed.empty() && report->left.empty() && !report->switch_finished);
}

} // namespace
} // namespace safering::test
