// The metadata commit: the machine alone, every step failing in turn; then whole saves on a simulated disk,
// every operation failing in turn and a power cut after every operation.

#include <cerrno>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "checkpoint/attempt.hpp"
#include "checkpoint/commit.hpp"
#include "checkpoint/commit_checkpoint.hpp"
#include "checkpoint/commit_part.hpp"
#include "checkpoint/finish_switch.hpp"
#include "checkpoint/manifest.hpp"
#include "checkpoint/removal.hpp"
#include "checkpoint/strict_json.hpp"
#include "disk_fixture.hpp"
#include "io/simulated_state.hpp"

namespace safering::test {
namespace {

using namespace checkpoint;

const std::string attempt = "0123456789abcdef0123456789abcdef";
const std::string attempt_directory = ".step." + attempt + ".tmp";

CommitInput input(bool present) {
    return {.target = {"/ckpt/step", "/ckpt", "step"},
            .attempt = attempt,
            .data_files = {"model-00001-of-00001.safetensors"},
            .manifest = "{}",
            .index = "{}",
            .target_present = present,
            .stale = {"model-00002-of-00002.safetensors"}};
}

struct Trace {
    std::vector<std::string> steps;
    int opened = 0;
    int closed = 0;
};

// Runs a machine; the `failing`th request of the run gets `error`.
Trace run(StepMachine& machine, std::size_t failing, std::error_code error = {}) {
    Trace trace;
    std::size_t count = 0;
    for (auto batch = machine.next(); !batch.empty(); batch = machine.next()) {
        std::vector<Completion> completions;
        for (const Request& request : batch) {
            Completion completion;
            if (count++ == failing)
                completion.error = error;
            else if (request.op == Opcode::open)
                completion.result = static_cast<std::uint64_t>(++trace.opened + 2);
            if (request.op == Opcode::close && !completion.error)
                ++trace.closed;
            trace.steps.push_back(std::string(name(request.op)) + " " + request.path);
            completions.push_back(completion);
        }
        machine.complete(completions);
        if (trace.steps.size() > 1000)
            throw std::runtime_error("the machine does not end");
    }
    return trace;
}

TEST(MetadataCommit, PublishesOnlyWhatIsDurable) {
    MetadataCommit commit(input(false));
    const Trace trace = run(commit, ~std::size_t{0});
    const std::string a = "/ckpt/.step." + attempt + ".tmp";
    const std::vector<std::string> expected{
        "open " + a + "/safering.manifest.json",
        "open " + a + "/model.safetensors.index.json",
        "write " + a + "/safering.manifest.json",
        "write " + a + "/model.safetensors.index.json",
        "fsync " + a + "/safering.manifest.json",
        "fsync " + a + "/model.safetensors.index.json",
        "close " + a + "/safering.manifest.json",
        "close " + a + "/model.safetensors.index.json",
        std::string(name(Opcode::sync_directory)) + " " + a,
        "rename " + a,
        std::string(name(Opcode::sync_directory)) + " /ckpt",
    };
    EXPECT_EQ(trace.steps, expected);
    EXPECT_TRUE(commit.committed());
    EXPECT_FALSE(commit.error());
}

// What takes its place where somebody has revoked the attempt is a file.
TEST(MetadataCommit, MovesARedoRecordInAsADirectoryOnly) {
    MetadataCommit commit(input(true));
    const Trace trace = run(commit, ~std::size_t{0});
    EXPECT_EQ(
        std::ranges::count(trace.steps, "rename /ckpt/" + attempt_directory + "/.safering.redo/"),
        1);
    EXPECT_TRUE(commit.committed());
}

TEST(MetadataCommit, ReportsTheFirstFailureOfEveryStepAndClosesItsFiles) {
    for (const bool present : {false, true}) {
        MetadataCommit whole(input(present));
        const std::size_t steps = run(whole, ~std::size_t{0}).steps.size();
        for (std::size_t failing = 0; failing < steps; ++failing) {
            MetadataCommit commit(input(present));
            const Trace trace = run(commit, failing, std::make_error_code(std::errc::io_error));
            ASSERT_TRUE(commit.error()) << failing;
            EXPECT_EQ(commit.error()->code, std::errc::io_error);
            EXPECT_FALSE(commit.committed());
            EXPECT_EQ(commit.published(), failing >= steps - (present ? 2 : 1))
                << trace.steps.back();
            EXPECT_LE(trace.opened - trace.closed,
                      trace.steps[failing].starts_with("close") ? 1 : 0);
        }
    }
}

TEST(MetadataCommit, SaysThatTheTargetAppeared) {
    for (const std::errc taken : {std::errc::file_exists, std::errc::directory_not_empty}) {
        MetadataCommit commit(input(false));
        run(commit, 9, std::make_error_code(taken));
        EXPECT_TRUE(commit.target_appeared());
        EXPECT_FALSE(commit.error());
        EXPECT_FALSE(commit.published());
        // A target that was there before has another save's redo record.
        MetadataCommit replacing(input(true));
        const std::size_t steps = run(replacing, ~std::size_t{0}).steps.size();
        MetadataCommit late(input(true));
        run(late, steps - 3, std::make_error_code(taken));
        EXPECT_FALSE(late.target_appeared());
        ASSERT_TRUE(late.error());
        EXPECT_EQ(late.error()->operation, name(Opcode::rename));
    }
}

TEST(MetadataCommit, LetsAReaderFinishTheSwitchMeanwhile) {
    const auto gone = std::make_error_code(std::errc::no_such_file_or_directory);
    MetadataCommit whole(input(true));
    const std::size_t steps = run(whole, ~std::size_t{0}).steps.size();
    for (std::size_t failing = 0; failing < steps; ++failing) {
        MetadataCommit commit(input(true));
        const Trace trace = run(commit, failing, gone);
        const bool attempt_after_publish = failing == steps - 2;
        EXPECT_EQ(trace.steps[failing].ends_with(attempt_directory),
                  failing == steps - 7 || attempt_after_publish);
        EXPECT_EQ(commit.committed(), attempt_after_publish) << trace.steps[failing];
        EXPECT_EQ(commit.error().has_value(), !attempt_after_publish) << trace.steps[failing];
    }
}

TEST(RedoSwitch, MovesDataThenManifestThenIndexAndUnlinksLast) {
    MetadataCommit commit(input(true));
    run(commit, ~std::size_t{0});
    RedoSwitch move(input(true).target, commit.redo_record(), RedoSwitch::Part::move_in);
    RedoSwitch clean_up(input(true).target, commit.redo_record(), RedoSwitch::Part::clean_up);
    const Trace moving = run(move, ~std::size_t{0});
    const auto order = [](const Trace& trace) {
        std::string words;
        for (const std::string& step : trace.steps)
            words += step.substr(0, step.find(' ')) + " ";
        return words;
    };
    EXPECT_EQ(order(moving), "rename rename rename sync sync ");
    EXPECT_TRUE(moving.steps[2].ends_with("model.safetensors.index.json"));
    const Trace cleaning = run(clean_up, ~std::size_t{0});
    EXPECT_EQ(order(cleaning), "unlink sync unlink remove remove sync ");
    // By a way that is there as long as this switch is.
    EXPECT_EQ(cleaning.steps[0], "unlink /ckpt/step/.safering.redo/" + attempt +
                                     "/../../model-00002-of-00002.safetensors");
}

TEST(RedoSwitch, TakesWhatIsGoneAsDone) {
    const RedoRecord record{attempt, attempt_directory, {"a.safetensors"}, {"b.safetensors"}};
    const auto gone = std::make_error_code(std::errc::no_such_file_or_directory);
    for (const auto& [part, failing] : {std::pair{RedoSwitch::Part::move_in, 0u},
                                        {RedoSwitch::Part::move_in, 1u},
                                        {RedoSwitch::Part::clean_up, 0u},
                                        {RedoSwitch::Part::clean_up, 2u},
                                        {RedoSwitch::Part::clean_up, 3u},
                                        {RedoSwitch::Part::clean_up, 4u}}) {
        RedoSwitch machine(input(true).target, record, part);
        run(machine, failing, gone);
        EXPECT_FALSE(machine.error()) << failing;
    }
}

TEST(RedoSwitch, LeavesTheDirectoriesOfASwitchThatHasBegunSince) {
    const RedoRecord record{attempt, attempt_directory, {"a.safetensors"}, {"b.safetensors"}};
    for (const std::errc full : {std::errc::directory_not_empty, std::errc::file_exists})
        for (const std::size_t failing : {0u, 3u, 4u}) {
            RedoSwitch machine(input(true).target, record, RedoSwitch::Part::clean_up);
            const Trace trace = run(machine, failing, std::make_error_code(full));
            EXPECT_EQ(machine.error().has_value(), failing == 0) << trace.steps[failing];
        }
}

TEST(RedoSwitch, MissesItsTarget) {
    const RedoRecord record{attempt, attempt_directory, {"a.safetensors"}, {"b.safetensors"}};
    for (const auto& [part, failing] : {std::pair{RedoSwitch::Part::move_in, 2u},
                                        {RedoSwitch::Part::clean_up, 1u},
                                        {RedoSwitch::Part::clean_up, 5u}}) {
        RedoSwitch machine(input(true).target, record, part);
        const Trace trace =
            run(machine, failing, std::make_error_code(std::errc::no_such_file_or_directory));
        EXPECT_EQ(trace.steps[failing], std::string(name(Opcode::sync_directory)) + " /ckpt/step");
        EXPECT_TRUE(machine.error());
        EXPECT_EQ(machine.record_removed(), failing == 5);
    }
}

TEST(RedoRecord, RoundTripsAndRefusesForeignNames) {
    const RedoRecord record{
        attempt, attempt_directory, {"a.safetensors", "safering.manifest.json"}, {"b.safetensors"}};
    EXPECT_EQ(parse_redo_record(to_text(record), "redo").value(), record);
    for (void (*change)(RedoRecord&) : std::initializer_list<void (*)(RedoRecord&)>{
             [](RedoRecord& r) { r.attempt[0] = 'f'; }, [](RedoRecord& r) { r.directory = "step"; },
             [](RedoRecord& r) { r.move.pop_back(); }, [](RedoRecord& r) { r.remove.clear(); }}) {
        RedoRecord changed = record;
        change(changed);
        EXPECT_NE(changed, record);
    }
    for (const char* name :
         {"../a.safetensors", "/etc/passwd", "config.json", "", "a/b.safetensors"}) {
        auto parsed =
            parse_redo_record(to_text(RedoRecord{attempt, attempt_directory, {name}, {}}), "redo");
        ASSERT_FALSE(parsed) << name;
        EXPECT_EQ(parsed.error().code, Errc::checkpoint_unsafe_name);
    }
    for (const char* bad : {"", "..", "a/b", ".step.0123.tmp", "step"})
        EXPECT_FALSE(parse_redo_record(to_text(RedoRecord{attempt, bad, {}, {}}), "redo")) << bad;
    std::string changed = to_text(record);
    changed[20] ^= 1;
    EXPECT_FALSE(parse_redo_record(changed, "redo"));
}

TEST(RedoRecord, RefusesWhatIsSealedButWrong) {
    const std::string text = to_text(RedoRecord{attempt, attempt_directory, {"a.safetensors"}, {}});
    for (const auto& [from, to] : std::initializer_list<std::pair<const char*, const char*>>{
             {"\"safering_redo\":1", "\"safering_redo\":2"},
             {"\"safering_redo\":1", "\"safering_redo\":\"1\""},
             {"\"safering_redo\":1,", ""},
             {"\"move\":", "\"moves\":"},
             {"[\"a.safetensors\"]", "[7]"},
             {"\"attempt\":\"0", "\"attempt\":\"A"},
             {"\"directory\":", "\"directory\":[],"},
             {"{", "[{"}}) {
        std::string body = text.substr(0, text.rfind(",\"xxh3\""));
        const auto at = body.find(from);
        ASSERT_NE(at, std::string::npos) << from;
        body.replace(at, std::string_view(from).size(), to);
        const auto parsed = parse_redo_record(seal_json(body), "redo");
        ASSERT_FALSE(parsed) << body;
        EXPECT_EQ(parsed.error().code, Errc::checkpoint_bad_manifest) << body;
        EXPECT_FALSE(parsed.error().detail.empty());
    }
}

TEST(AttemptNames, AreRecognisedOnlyInFull) {
    const std::string id = make_attempt_id();
    EXPECT_TRUE(is_attempt_id(id));
    const std::string name = attempt_directory_name("step", id);
    EXPECT_EQ(parse_attempt_directory_name(name, "step"), id);
    EXPECT_FALSE(parse_attempt_directory_name(name, "ste"));
    EXPECT_FALSE(parse_attempt_directory_name(name + "x", "step"));
    EXPECT_FALSE(parse_attempt_directory_name("." + name, "step"));
    EXPECT_FALSE(parse_attempt_directory_name(".step.old.tmp", "step"));
}

TEST(AttemptNames, SortInTheOrderOfTheirMaking) {
    std::string before = make_attempt_id();
    for (int i = 0; i < 1000; ++i) {
        const std::string id = make_attempt_id();
        ASSERT_LT(before, id);
        before = id;
    }
}

class Commit : public OnDisk {};

TEST_F(Commit, LeavesNothingBesideTheCheckpoint) {
    ASSERT_TRUE(save_model(small_model(1)));
    EXPECT_EQ(disk->list("/ckpt"), std::vector<std::string>{"step"});
    EXPECT_EQ(disk->list(path),
              (std::vector<std::string>{"model-00001-of-00001.safetensors",
                                        "model.safetensors.index.json", "safering.manifest.json"}));
    (void)reactor->wait({.op = Opcode::stat, .path = "/ckpt"}); // after the reader's own close
    EXPECT_EQ(disk->open_files(), 0u);
}

TEST_F(Commit, ReplacesACheckpointAndKeepsWhatIsNotOurs) {
    const Model old = small_model(1);
    ASSERT_TRUE(save_model(old, {2, 0}, two_files(old)));
    disk->write_text(path + "/config.json", "{}");
    disk->write_text(path + "/sub/other.safetensors", "x");
    disk->write_text(path + "/adapter.safetensors", "y");
    const Model fresh = small_model(50);
    auto report = save_model(fresh, {1, 0});
    ASSERT_TRUE(report) << report.error().message();
    EXPECT_TRUE(report->replaced);
    EXPECT_EQ(differs(fresh), "");
    EXPECT_EQ(disk->list(path), (std::vector<std::string>{"adapter.safetensors", "config.json",
                                                          "model-00001-of-00001.safetensors",
                                                          "model.safetensors.index.json",
                                                          "safering.manifest.json", "sub"}));
    EXPECT_EQ(disk->read_text(path + "/adapter.safetensors"), "y");
}

TEST_F(Commit, ReplacesAFullCheckpointByAShardedOneWithoutItsIndex) {
    ASSERT_TRUE(save_model(small_model(1)));
    const Model fresh = small_model(60);
    ASSERT_TRUE(save_model(fresh, {2, 0}, {.layout = FileLayout::sharded}));
    EXPECT_FALSE(disk->exists(path + "/model.safetensors.index.json"));
    EXPECT_FALSE(disk->exists(path + "/model-00001-of-00001.safetensors"));
    EXPECT_EQ(differs(fresh), "");
}

TEST_F(Commit, GoesOnWhereTheTargetAppearsDuringTheSave) {
    const Model model = small_model(1);
    Rank rank = cut(model, {1, 0}, 0);
    DefaultSavePlanner planner(rank.tensors);
    HuggingFaceStorageWriter writer(path, {}, reactor);
    auto global = create_global_plan({planner.create_local_plan()});
    auto plans = writer.prepare_global_plan(global->plans);
    ASSERT_TRUE(plans);
    disk->write_text(path + "/config.json", "{}");
    auto results = writer.write_data((*plans)[0], planner).get();
    auto report = writer.finish(global->metadata, {results});
    ASSERT_TRUE(report) << report.error().message();
    EXPECT_TRUE(disk->exists(path + "/config.json"));
    EXPECT_EQ(differs(model), "");
    EXPECT_EQ(disk->list("/ckpt"), std::vector<std::string>{"step"});
}

// Whoever makes config.json may come between the last look at the target and the rename.
TEST_F(Commit, GoesOnWhereTheTargetAppearsAtTheRename) {
    const Model model = small_model(1);
    bool appeared = false;
    const Operation* refused = nullptr;
    disk->intercept([&](Operation& operation) -> std::optional<Completion> {
        if (!appeared && operation.request.op == Opcode::rename &&
            operation.request.new_path == path) {
            appeared = true;
            refused = &operation;
            operation.request.op = Opcode::make_directory;
            operation.request.path = path;
        }
        return std::nullopt;
    });
    disk->intercept_end([&](Operation& operation) {
        if (&operation == std::exchange(refused, nullptr))
            operation.completion.error = std::make_error_code(std::errc::file_exists);
    });
    auto report = save_model(model);
    ASSERT_TRUE(report) << report.error().message();
    EXPECT_TRUE(appeared);
    EXPECT_EQ(differs(model), "");
    EXPECT_EQ(disk->list("/ckpt"), std::vector<std::string>{"step"});
}

// A switch that was cut off, and then its attempt is not beside the checkpoint any more.
TEST_F(Commit, HarmsNothingWhereTheAttemptOfASwitchIsGone) {
    const Model old = small_model(1);
    const Model fresh = small_model(30);
    ASSERT_TRUE(save_model(old, {2, 0}, two_files(old)));
    disk->inject(
        {.op = Opcode::rename, .path_contains = "model-", .times = Fault::for_ever, .error = EIO});
    ASSERT_FALSE(save_model(fresh));
    disk->clear_faults();
    // Moved together with what lies beside it, it is finished under its new name.
    auto renamed = disk->crash({CrashPolicy::Kind::keep_all});
    auto other = make_reactor(renamed);
    ASSERT_FALSE(other->wait({.op = Opcode::rename, .path = path, .new_path = "/ckpt/kept"}).error);
    EXPECT_EQ(differences(fresh, {1, 0}, "/ckpt/kept", other), "");
    // Moved alone, it says what is missing, and keeps the old files.
    auto alone = disk->crash({CrashPolicy::Kind::keep_all});
    alone->make_directory("/elsewhere");
    auto third = make_reactor(alone);
    ASSERT_FALSE(
        third->wait({.op = Opcode::rename, .path = path, .new_path = "/elsewhere/step"}).error);
    HuggingFaceStorageReader reader("/elsewhere/step", {}, third);
    auto metadata = reader.read_metadata();
    ASSERT_FALSE(metadata);
    EXPECT_EQ(metadata.error().code, Errc::checkpoint_conflict);
    ASSERT_TRUE(remove_tree(*third, "/elsewhere/step/.safering.redo"));
    EXPECT_EQ(differences(old, {1, 0}, "/elsewhere/step", third), "");
}

// The same of a checkpoint of others, which no manifest tells from the new one's files: some may have been moved in.
TEST_F(Commit, LoadsNoMixtureWhereTheAttemptOfASwitchIsGoneAndNothingTellsThemApart) {
    const Model old = small_model(1);
    const Model fresh = small_model(30);
    const std::string manifest = join(path, std::string(manifest_name));
    ASSERT_TRUE(save_model(old, {2, 0}, two_files(old)));
    ASSERT_FALSE(reactor->wait({.op = Opcode::unlink, .path = manifest}).error);
    disk->inject({.op = Opcode::rename,
                  .path_contains = "model-00002",
                  .times = Fault::for_ever,
                  .error = EIO});
    ASSERT_FALSE(save_model(fresh, {2, 0}, two_files(fresh)));
    disk->clear_faults();
    disk = disk->crash({CrashPolicy::Kind::keep_all});
    reactor = make_reactor(disk);
    const SimulatedTree cut_off = disk->now();
    EXPECT_EQ(differs(fresh), ""); // the attempt is beside it
    disk->restart(cut_off);
    const std::string beside = disk->list("/ckpt")[0];
    ASSERT_TRUE(beside.starts_with('.'));
    ASSERT_TRUE(remove_tree(*reactor, join("/ckpt", beside)));
    EXPECT_EQ(load_error().code, Errc::checkpoint_conflict);
    const auto verified = verify_checkpoint(path, *reactor);
    EXPECT_TRUE(!verified || !verified->findings.empty());
}

TEST_F(Commit, RefusesADirectoryInTheWayBeforeTheCommit) {
    const Model old = small_model(1);
    ASSERT_TRUE(save_model(old, {2, 0}, two_files(old)));
    disk->make_directory(path + "/model-00001-of-00001.safetensors");
    auto saved = save_model(small_model(30));
    ASSERT_FALSE(saved);
    EXPECT_EQ(saved.error().code, Errc::checkpoint_not_a_file);
    EXPECT_EQ(differs(old), "");
    EXPECT_EQ(disk->list("/ckpt"), std::vector<std::string>{"step"});
}

TEST_F(Commit, CleansOlderAttemptsOfThisTargetOnly) {
    const auto stale = [](const std::string& target, const std::string& id) {
        return "/ckpt/" + attempt_directory_name(target, id);
    };
    const std::string old_id(32, '0');
    const std::string new_id(32, 'f');
    for (const auto& directory :
         {stale("step", old_id), stale("step", new_id), stale("step2", old_id)})
        disk->write_text(directory + "/model-00001-of-00001.safetensors", "half");
    ASSERT_TRUE(save_model(small_model(1)));
    EXPECT_FALSE(disk->exists(stale("step", old_id)));
    EXPECT_TRUE(disk->exists(stale("step", new_id)));
    EXPECT_TRUE(disk->exists(stale("step2", old_id)));
}

// A commit whose data file is durable.
class CommitDriver : public OnDisk {
  protected:
    CommitInput prepare() {
        disk->write_text(join(join("/ckpt", attempt_directory), file), "new");
        return {.target = target,
                .attempt = attempt,
                .data_files = {file},
                .manifest = to_text(Manifest{.attempt = attempt, .chunk_bytes = 4096}),
                .index = {},
                .stale = {}};
    }

    const TargetPath target{path, "/ckpt", "step"};
    const std::string file = "model-00001-of-00001.safetensors";
    const std::string redo = join(path, std::string(redo_name));
    const std::string switch_directory = join(redo, attempt);
};

TEST_F(CommitDriver, SaysWhoTookTheAttemptAway) {
    for (const auto& [op, error, words] :
         std::initializer_list<std::tuple<Opcode, int, std::string_view>>{
             {Opcode::rename, EEXIST, "another save is committing to this target"},
             {Opcode::rename, ENOENT, "a later save of this target"},
             {Opcode::make_directory, EEXIST, "a later save of this target"},
             {Opcode::make_directory, ENOENT, "a later save of this target"},
             {Opcode::make_directory, ENOTDIR, "a later save of this target"},
             {Opcode::make_directory, EIO, ""}}) {
        disk->write_text(join(path, file), "old");
        CommitInput saving = prepare();
        disk->inject({.op = op, .error = error});
        const CommitOutcome outcome = commit_checkpoint(*reactor, saving);
        disk->clear_faults();
        ASSERT_TRUE(outcome.error);
        EXPECT_EQ(outcome.error->code.value(), error);
        EXPECT_NE(outcome.error->detail.find(words), std::string::npos) << outcome.error->message();
        EXPECT_EQ(outcome.error->detail.find("save again") != std::string::npos, !words.empty());
        EXPECT_FALSE(outcome.published);
        EXPECT_EQ(disk->read_text(join(path, file)), "old");
        ASSERT_TRUE(remove_tree(*reactor, join("/ckpt", attempt_directory)));
    }
}

TEST_F(CommitDriver, RefusesAFileAtTheTarget) {
    disk->write_text(path, "somebody's");
    const CommitOutcome outcome = commit_checkpoint(*reactor, prepare());
    ASSERT_TRUE(outcome.error);
    EXPECT_EQ(outcome.error->code, Errc::checkpoint_not_a_file);
    EXPECT_EQ(disk->read_text(path), "somebody's");
}

TEST_F(CommitDriver, ReadsNoSwitchFromWhatIsNone) {
    disk->write_text("/ckpt/file", "x");
    disk->write_text("/ckpt/revoked/.safering.redo", "");
    disk->make_directory("/ckpt/ended/.safering.redo/" + attempt);
    for (const char* name : {"/ckpt/absent", "/ckpt/file", "/ckpt", "/ckpt/revoked", "/ckpt/ended"})
        EXPECT_EQ(read_redo_record(*reactor, name).value(), std::nullopt) << name;
    for (const char* name : {"revoked", "ended"}) {
        const std::string directory = join("/ckpt", name);
        EXPECT_FALSE(finish_switch(*reactor, {directory, "/ckpt", name}).value());
        EXPECT_TRUE(disk->list(directory).empty());
    }
    // Gone between the two looks at it.
    disk->make_directory("/ckpt/gone/.safering.redo");
    disk->intercept([](Operation& operation) {
        return operation.request.path == "/ckpt/gone" ? std::optional(Completion{}) : std::nullopt;
    });
    EXPECT_EQ(read_redo_record(*reactor, "/ckpt/gone").value(), std::nullopt);
}

TEST_F(CommitDriver, RefusesASwitchThatIsNotOurs) {
    const auto refused = [&](Errc code) {
        const auto read = read_redo_record(*reactor, path);
        EXPECT_FALSE(read);
        EXPECT_TRUE(read || read.error().code == code) << read.error().message();
        EXPECT_FALSE(finish_switch(*reactor, target));
        EXPECT_TRUE(remove_tree(*reactor, path));
    };
    disk->make_directory("/elsewhere");
    disk->make_directory(path);
    disk->make_symlink(redo, "/elsewhere");
    refused(Errc::checkpoint_not_a_file);
    disk->make_directory(path);
    disk->write_text("/elsewhere/file", "");
    disk->make_symlink(redo, "/elsewhere/file");
    refused(Errc::checkpoint_not_a_file);
    // A file at the first look, a directory at the second.
    disk->make_directory(switch_directory);
    disk->inject({.op = Opcode::list, .path_contains = redo, .times = 2, .error = ENOTDIR});
    refused(Errc::checkpoint_not_a_file);
    disk->write_text(join(redo, "notes.txt"), "");
    refused(Errc::checkpoint_not_a_file);
    disk->write_text(switch_directory, "");
    refused(Errc::checkpoint_not_a_file);
    const std::string other(32, 'f');
    disk->write_text(redo_path(path, attempt),
                     to_text(RedoRecord{other, attempt_directory_name("step", other), {}, {}}));
    refused(Errc::checkpoint_bad_manifest);
    disk->write_text(redo_path(path, attempt), "{}");
    refused(Errc::checkpoint_bad_manifest);
}

// What a crash leaves of a switch: all of it, its directories, or the mark of somebody who revoked the attempt.
TEST_F(CommitDriver, FinishesASwitchWhicheverOperationFailsFirst) {
    disk->write_text(join(path, file), "old");
    disk->write_text(join(path, "model-00002-of-00002.safetensors"), "old");
    disk->inject({.op = Opcode::rename, .path_contains = file, .error = EIO});
    ASSERT_TRUE(commit_checkpoint(*reactor, prepare()).error);
    const SimulatedTree committed = disk->now();
    ASSERT_TRUE(remove_tree(*reactor, redo));
    disk->make_directory(switch_directory);
    const SimulatedTree ended = disk->now();
    ASSERT_TRUE(remove_tree(*reactor, redo));
    disk->write_text(redo, "");
    const SimulatedTree revoked = disk->now();
    for (const SimulatedTree* tree : {&committed, &ended, &revoked}) {
        std::uint64_t failures = 0;
        for (std::uint64_t nth = 0;; ++nth) {
            SCOPED_TRACE(nth);
            disk->restart(*tree);
            disk->inject({.after = nth, .times = 1, .error = EIO});
            const auto finished = finish_switch(*reactor, target);
            const bool reached = !disk->hits().empty();
            disk->clear_faults();
            if (!finished) {
                ++failures;
                EXPECT_EQ(finished.error().code, std::errc::io_error);
            }
            ASSERT_TRUE(finish_switch(*reactor, target)); // or clears up behind one that was done
            EXPECT_EQ(disk->read_text(join(path, file)), tree == &committed ? "new" : "old");
            EXPECT_FALSE(disk->exists(redo));
            if (!reached)
                break;
        }
        EXPECT_GE(failures, 3u);
    }
}

// It has been finished then, and what stays of it is no other save's.
TEST_F(CommitDriver, CommitsAfterASwitchWhoseDirectoryCouldNotBeRemoved) {
    disk->write_text(join(path, file), "old");
    disk->inject({.op = Opcode::rename, .path_contains = file, .error = EIO});
    ASSERT_TRUE(commit_checkpoint(*reactor, prepare()).error);
    const std::string next = "b" + attempt.substr(1);
    disk->write_text(join(target.attempt_directory(next), file), "newer");
    disk->inject({.op = Opcode::remove_directory, .error = EIO});
    const CommitOutcome outcome = commit_checkpoint(
        *reactor, {.target = target,
                   .attempt = next,
                   .data_files = {file},
                   .manifest = to_text(Manifest{.attempt = next, .chunk_bytes = 4096}),
                   .index = {},
                   .stale = {}});
    EXPECT_EQ(disk->hits().size(), 2u);
    ASSERT_FALSE(outcome.error) << outcome.error->message();
    EXPECT_EQ(disk->read_text(join(path, file)), "newer");
    EXPECT_EQ(disk->list("/ckpt"), std::vector<std::string>{"step"});
}

// As the target has another name while somebody who was to remove it gives it back.
TEST_F(CommitDriver, MovesAgainWhatAMoveDidNotFind) {
    for (const std::uint64_t times : {std::uint64_t{1}, Fault::for_ever}) {
        disk->write_text(join(path, file), "old");
        CommitInput saving = prepare();
        disk->inject({.op = Opcode::rename,
                      .path_contains = join(attempt_directory, file),
                      .times = times,
                      .error = ENOENT});
        const CommitOutcome outcome = commit_checkpoint(*reactor, saving);
        disk->clear_faults();
        EXPECT_EQ(outcome.error.has_value(), times != 1);
        if (outcome.error) {
            EXPECT_EQ(outcome.error->code, Errc::checkpoint_conflict);
            EXPECT_TRUE(finish_switch(*reactor, target));
        }
        EXPECT_EQ(disk->read_text(join(path, file)), "new");
        EXPECT_EQ(disk->list("/ckpt"), std::vector<std::string>{"step"});
        ASSERT_TRUE(remove_tree(*reactor, path));
    }
}

// Then nothing says that the new checkpoint is there, and nothing of the old one is removed.
TEST_F(CommitDriver, RemovesNothingWhereTheManifestWasDamagedMeanwhile) {
    const std::string stale = join(path, "model-00002-of-00002.safetensors");
    disk->write_text(stale, "old");
    disk->inject({.op = Opcode::unlink, .path_contains = "model-00002", .error = EIO});
    ASSERT_TRUE(commit_checkpoint(*reactor, prepare()).error);
    disk->clear_faults();
    const std::string manifest = join(path, std::string(manifest_name));
    const std::string whole = disk->read_text(manifest);
    disk->write_text(manifest, whole.substr(1));
    const auto finished = finish_switch(*reactor, target);
    ASSERT_FALSE(finished);
    EXPECT_EQ(finished.error().code, Errc::checkpoint_conflict);
    EXPECT_TRUE(disk->exists(stale));
    disk->write_text(manifest, whole);
    EXPECT_TRUE(finish_switch(*reactor, target).value());
    EXPECT_FALSE(disk->exists(stale));
}

TEST_F(CommitDriver, ReplacesACheckpointWhoseRecordsAreDamaged) {
    disk->write_text(join(path, std::string(manifest_name)), "{}");
    disk->write_text(join(path, std::string(index_name)), "[]");
    disk->write_text(join(path, "model-00002-of-00002.safetensors"), "old");
    disk->write_text(join(path, "adapter.safetensors"), "not known to be ours");
    const CommitOutcome outcome = commit_checkpoint(*reactor, prepare());
    ASSERT_FALSE(outcome.error) << outcome.error->message();
    EXPECT_EQ(disk->list(path),
              (std::vector<std::string>{"adapter.safetensors", file, std::string(manifest_name)}));
}

TEST_F(CommitDriver, LeavesWhatAnotherSwitchHasBegunInTheMeantime) {
    for (const int error : {ENOENT, ENOTEMPTY, EEXIST}) {
        disk->make_directory(switch_directory);
        disk->inject({.op = Opcode::remove_directory, .times = Fault::for_ever, .error = error});
        EXPECT_FALSE(finish_switch(*reactor, target).value()) << error;
        disk->clear_faults();
        EXPECT_TRUE(disk->exists(switch_directory));
    }
}

// Nothing here is atomic across ranks, but a rank's files are in its attempt or in the target, whatever fails.
TEST(PartCommit, ReportsTheFailureOfEveryOperationAndLosesNoFile) {
    const std::vector<std::string> files{"a.safetensors", "b.safetensors"};
    const TargetPath target{"/ckpt/step", "/ckpt", "step"};
    const std::string directory = "/ckpt/" + attempt_directory;
    std::uint64_t failures = 0;
    for (std::uint64_t nth = 0;; ++nth) {
        auto disk = std::make_shared<SimulatedDisk>();
        for (const std::string& file : files)
            disk->write_text(join(directory, file), file);
        auto reactor = make_reactor(disk);
        disk->inject({.after = nth, .times = 1, .error = EIO});
        const auto committed = commit_part(*reactor, target, directory, files);
        for (const std::string& file : files)
            EXPECT_NE(disk->exists(join(directory, file)), disk->exists(join(target.path, file)));
        if (disk->hits().empty()) {
            ASSERT_TRUE(committed) << committed.error().message();
            for (const std::string& file : files)
                EXPECT_EQ(disk->crash()->read_text(join(target.path, file)), file);
            break;
        }
        ++failures;
        ASSERT_FALSE(committed) << nth;
        EXPECT_EQ(committed.error().code, std::errc::io_error) << committed.error().message();
        EXPECT_FALSE(committed.error().file.empty());
    }
    EXPECT_EQ(failures, 6 + files.size() + 2);
}

TEST(PartCommit, AddsToATargetThatIsThere) {
    auto disk = std::make_shared<SimulatedDisk>();
    const TargetPath target{"/ckpt/step", "/ckpt", "step"};
    const std::string directory = "/ckpt/" + attempt_directory;
    disk->write_text("/ckpt/step/a.safetensors", "another rank's");
    disk->write_text("/ckpt/step/b.safetensors", "older");
    disk->write_text(join(directory, "b.safetensors"), "newer");
    auto reactor = make_reactor(disk);
    ASSERT_TRUE(commit_part(*reactor, target, directory, {"b.safetensors"}));
    EXPECT_EQ(disk->crash()->read_text("/ckpt/step/a.safetensors"), "another rank's");
    EXPECT_EQ(disk->crash()->read_text("/ckpt/step/b.safetensors"), "newer");
}

// Every operation of a save fails once: the save fails or succeeds, and what a reader finds is the old
// checkpoint or the new one accordingly.
void fail_every_operation(bool present) {
    const Model old = small_model(1);
    const Model fresh = small_model(90);
    std::uint64_t failures = 0;
    for (std::uint64_t nth = 0;; ++nth) {
        auto disk = std::make_shared<SimulatedDisk>();
        disk->make_directory("/ckpt");
        auto reactor = make_reactor(disk);
        const std::string path = "/ckpt/step";
        if (present) {
            ASSERT_TRUE(save(old, {2, 0}, path, two_files(old), {reactor}));
        }
        const std::uint64_t before = disk->operations();
        disk->inject({.after = nth, .times = 1, .error = EIO});
        auto saved = save(fresh, {2, 1}, path, {}, {reactor});
        const bool reached = disk->operations() - before > nth;
        disk->clear_faults();
        SCOPED_TRACE(
            fmt::format("operation {} of a save, target {}", nth, present ? "present" : "absent"));
        const std::string is_old = present ? differences(old, {1, 0}, path, reactor) : "absent";
        const std::string is_new = differences(fresh, {1, 0}, path, reactor);
        if (saved)
            EXPECT_EQ(is_new, "");
        else if (present)
            EXPECT_TRUE(is_old.empty() || is_new.empty()) << is_old << " / " << is_new;
        else
            EXPECT_TRUE(!disk->exists(path) || is_new.empty()) << is_new;
        if (!saved) {
            ++failures;
            EXPECT_EQ(saved.error().code.value(), EIO) << saved.error().message();
        }
        // Readers close without waiting; this comes after.
        (void)reactor->wait({.op = Opcode::stat, .path = "/ckpt"});
        EXPECT_EQ(disk->open_files(), 0u);
        if (!reached)
            break;
        // A second save heals whatever the failed one left.
        auto again = save(fresh, {1, 0}, path, {}, {reactor});
        ASSERT_TRUE(again) << again.error().message();
        ASSERT_EQ(differences(fresh, {1, 0}, path, reactor), "");
        EXPECT_EQ(disk->list("/ckpt"), std::vector<std::string>{"step"});
    }
    EXPECT_GT(failures, 30u);
}
TEST(CommitFaults, EveryOperationFailsOnceTargetAbsent) {
    fail_every_operation(false);
}
TEST(CommitFaults, EveryOperationFailsOnceTargetPresent) {
    fail_every_operation(true);
}

// A power cut after every operation, with several fates of what was not durable.
enum class Recovery { may_write, read_only };
void cut_power_everywhere(bool present, Recovery recovery = Recovery::may_write) {
    const Model old = small_model(1);
    const Model fresh = small_model(120);
    auto disk = std::make_shared<SimulatedDisk>();
    disk->make_directory("/ckpt");
    auto reactor = make_reactor(disk);
    const std::string path = "/ckpt/step";
    std::size_t first = 0;
    if (present) {
        ASSERT_TRUE(save(old, {2, 0}, path, two_files(old), {reactor}));
        first = disk->log_size();
    }
    ASSERT_TRUE(save(fresh, {2, 1}, path, {}, {reactor}));
    const std::size_t last = disk->log_size();
    std::vector<CrashPolicy> policies{{CrashPolicy::Kind::drop_unsynced},
                                      {CrashPolicy::Kind::keep_all}};
    // Each state costs a reactor; seeds beyond these belong to a longer programme.
    const std::uint64_t seeds = recovery == Recovery::may_write ? 3 : 1;
    for (std::uint64_t seed = 0; seed < seeds; ++seed)
        for (const auto kind : {CrashPolicy::Kind::random_subset, CrashPolicy::Kind::random_torn,
                                CrashPolicy::Kind::random_prefix})
            policies.push_back({kind, seed});
    std::size_t seen_old = 0;
    std::size_t seen_new = 0;
    for (std::size_t records = first; records <= last; ++records)
        for (const CrashPolicy& policy : policies) {
            auto after = disk->crash_after(records, policy);
            if (recovery == Recovery::read_only)
                for (const Opcode op : {Opcode::rename, Opcode::unlink, Opcode::remove_directory})
                    after->inject({.op = op, .times = Fault::for_ever, .error = EACCES});
            auto recovered = make_reactor(after);
            SCOPED_TRACE(fmt::format("{} of {} operations, policy {} seed {}", records, last,
                                     static_cast<int>(policy.kind), policy.seed));
            const std::string is_new = differences(fresh, {1, 0}, path, recovered);
            if (is_new.empty()) {
                ++seen_new;
                continue;
            }
            ASSERT_LT(records, last) << "success was reported: " << is_new;
            ++seen_old;
            if (present)
                ASSERT_EQ(differences(old, {1, 0}, path, recovered), "");
            else
                ASSERT_FALSE(after->exists(path)) << is_new;
        }
    EXPECT_GT(seen_old, 0u);
    EXPECT_GT(seen_new, 0u);
}
TEST(CommitCrash, LeavesNothingOrTheWholeCheckpoint) {
    cut_power_everywhere(false);
}
TEST(CommitCrash, LeavesTheOldCheckpointOrTheNewOne) {
    cut_power_everywhere(true);
}
TEST(CommitCrash, IsReadThroughByAReaderThatMayNotWrite) {
    cut_power_everywhere(true, Recovery::read_only);
}

} // namespace
} // namespace safering::test
