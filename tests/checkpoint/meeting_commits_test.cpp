// Several processes that commit, help, or clear away at the same target, each stopped at any moment and going on at any
// other: a rank that hung and wakes up after its successor's save, a reader that finishes a switch which was finished long
// ago. Whatever the order, what lies at the target in the end is one checkpoint, whole, and it is the one of somebody
// who said that it had saved.

#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <random>
#include <thread>

#include <boost/asio/io_context.hpp>
#include <fmt/format.h>

#include <safering/retention.hpp>

#include "../io/faulty_backend.hpp"
#include "checkpoint/attempt_directory.hpp"
#include "checkpoint/commit_checkpoint.hpp"
#include "checkpoint/finish_switch.hpp"
#include "checkpoint/manifest.hpp"
#include "checkpoint/removal.hpp"
#include "checkpoint/step_name.hpp"
#include "disk_fixture.hpp"
#include "io/simulated_state.hpp"

namespace safering::test {
namespace {

using namespace checkpoint;

constexpr std::uint64_t never = ~std::uint64_t{0};
const std::string parent = "/ckpt";
const std::string target = "/ckpt/step";

// Where somebody is stopped, before an operation whose outcome depends on names or changes them.
class Gate {
  public:
    void begin(std::uint64_t stop_before) {
        const std::lock_guard lock(mutex_);
        left_ = stop_before;
        ended_ = false;
    }
    void pass(Opcode op) {
        const bool names = op == Opcode::open || op == Opcode::stat || op == Opcode::list ||
                           op == Opcode::rename || op == Opcode::unlink ||
                           op == Opcode::make_directory || op == Opcode::remove_directory;
        std::unique_lock lock(mutex_);
        if (!names || left_ == never || left_-- != 0)
            return;
        stopped_ = true;
        changed_.notify_all();
        changed_.wait(lock, [&] { return !stopped_; });
    }
    /// Until it is stopped or has ended; true where it is stopped.
    bool wait() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return stopped_ || ended_; });
        return stopped_;
    }
    void go_on(std::uint64_t stop_before) {
        const std::lock_guard lock(mutex_);
        left_ = stop_before;
        stopped_ = false;
        changed_.notify_all();
    }
    void end() {
        const std::lock_guard lock(mutex_);
        ended_ = true;
        changed_.notify_all();
    }

  private:
    std::mutex mutex_;
    std::condition_variable changed_;
    std::uint64_t left_ = never;
    bool stopped_ = false;
    bool ended_ = true;
};

class GatedBackend final : public ForwardingBackend {
  public:
    GatedBackend(std::unique_ptr<Backend> backend, Gate& gate)
        : ForwardingBackend(std::move(backend)), gate_(gate) {}
    void start(Operation& operation) override {
        gate_.pass(operation.request.op);
        ForwardingBackend::start(operation);
        flush(); // what began before the next stop has happened by then
    }

  private:
    Gate& gate_;
};

// A process, as far as the disk can tell.
class Somebody {
  public:
    explicit Somebody(const std::shared_ptr<SimulatedDisk>& disk) {
        auto context = std::make_unique<boost::asio::io_context>(1);
        boost::asio::io_context& used = *context;
        auto backend = std::make_unique<FaultyBackend>(make_simulated_backend(disk, 64), 1);
        faults_ = backend.get();
        reactor_ =
            make_reactor(std::make_unique<GatedBackend>(std::move(backend), gate_),
                         {.buffer_bytes = 16 << 10, .buffer_count = 3}, std::move(context), used);
    }
    /// Of its operations from now on; 0: none.
    void fail_one_in(unsigned operations, std::uint64_t seed) {
        faults_->fail_one_in(operations, seed);
    }
    using Work = std::function<void(Reactor&)>;
    /// Until it is stopped or has ended; true where it is stopped.
    bool run(Work work, std::uint64_t stop_before) {
        gate_.begin(stop_before);
        thread_ = std::thread([this, work = std::move(work)] {
            work(*reactor_);
            gate_.end();
        });
        return gate_.wait();
    }
    /// The same, from where it was stopped; `stop_before` 0 is the operation after that one.
    bool go_on(std::uint64_t stop_before) {
        gate_.go_on(stop_before);
        return gate_.wait();
    }
    void finish() {
        gate_.go_on(never);
        thread_.join();
    }
    void run_to_the_end(Work work) {
        (void)run(std::move(work), never);
        finish();
    }

  private:
    Gate gate_;
    FaultyBackend* faults_ = nullptr;
    std::shared_ptr<Reactor> reactor_;
    std::thread thread_;
};

// A save whose data is durable, and what came of its commit.
struct Saving {
    Model model;
    CommitInput input;
    bool said = false;      // that it saved
    bool published = false; // though perhaps with an error after it
    std::string error;

    Somebody::Work commit() {
        return [this](Reactor& reactor) {
            const CommitOutcome outcome = commit_checkpoint(reactor, input);
            said = !outcome.error;
            published = outcome.published;
            error = outcome.error ? outcome.error->message() : std::string();
        };
    }
};

class MeetingCommits : public OnDisk {
  protected:
    MeetingCommits() {
        old_ = small_model(1);
        old_.push_back(make_tensor("old", Dtype::u8, {3}, 5));
        const Model first = small_model(100);
        EXPECT_TRUE(save(old_, {1, 0}, "/ckpt/old", {}, {reactor}));
        // Its files have other names than those before and after it, which it removes.
        savings_.push_back(prepare(first, two_files(first)));
        savings_.push_back(prepare(small_model(200), {}));
        savings_.push_back(prepare(small_model(300), {}));
        absent_ = disk->now();
        perform({.op = Opcode::rename, .path = "/ckpt/old", .new_path = target});
        present_ = disk->now();
        old_checkpoint_ = {.name = "step", .path = target, .attempt = attempt_at(target)};
    }

    std::string attempt_at(const std::string& directory) {
        const std::string manifest = join(directory, std::string(manifest_name));
        return parse_manifest(disk->read_text(manifest), manifest).value().attempt;
    }

    // Of the old checkpoint, as `prune` does it.
    Somebody::Work removal() {
        return [this](Reactor& on) {
            removing_ = true;
            (void)remove_checkpoint(on, parent, old_checkpoint_, RetentionPolicy::Others::keep);
        };
    }

    void perform(const Request& request) { ASSERT_FALSE(reactor->wait(request).error); }

    // Saved, and taken apart again to what it was just before its commit.
    Saving prepare(const Model& model, const WriterOptions& options) {
        const std::string place = "/ckpt/elsewhere";
        const auto report = save(model, {1, 0}, place, options, {reactor});
        if (!report)
            throw Exception(report.error());
        Saving saving;
        saving.model = model;
        saving.input.target = {target, parent, "step"};
        saving.input.attempt = report->attempt;
        saving.input.manifest = disk->read_text(join(place, std::string(manifest_name)));
        saving.input.index = disk->read_text(join(place, std::string(index_name)));
        const auto manifest = parse_manifest(saving.input.manifest, place);
        for (const ManifestFile& file : manifest.value().files)
            saving.input.data_files.push_back(file.name);
        for (const auto name : {manifest_name, index_name})
            perform({.op = Opcode::unlink, .path = join(place, std::string(name))});
        perform({.op = Opcode::rename,
                 .path = place,
                 .new_path = saving.input.target.attempt_directory(report->attempt)});
        return saving;
    }

    void begin(bool present) {
        disk->restart(present ? present_ : absent_);
        for (Saving& saving : savings_)
            saving.said = saving.published = false;
        present_before_ = present;
        removing_ = false;
    }

    // One checkpoint, whole; that of `expected` where that is given.
    void check(const Saving* expected = nullptr) {
        std::string what;
        std::vector<const Saving*> found;
        for (const Saving& saving : savings_) {
            if (differences(saving.model, {1, 0}, target, reactor).empty())
                found.push_back(&saving);
            what += fmt::format("; {}: {}", saving.input.attempt,
                                saving.said ? "saved" : "failed: " + saving.error);
        }
        const bool somebody = std::ranges::any_of(savings_, &Saving::said);
        if (found.empty()) {
            EXPECT_FALSE(somebody) << "somebody said that he saved" << what;
            if (present_before_ && !(removing_ && !disk->exists(target)))
                EXPECT_EQ(differences(old_, {1, 0}, target, reactor), "") << what;
            else
                EXPECT_FALSE(disk->exists(target)) << what;
            return;
        }
        EXPECT_TRUE(found[0]->said || found[0]->published) << what;
        EXPECT_TRUE(expected == nullptr || found[0] == expected) << what;
        // And it can be saved to again, which clears away whatever there is.
        if (++checked_ % 8 != 0)
            return;
        const Model last = small_model(400);
        const auto saved = save(last, {1, 0}, target, {}, {reactor});
        EXPECT_TRUE(saved) << saved.error().message() << what;
        EXPECT_EQ(differences(last, {1, 0}, target, reactor), "") << what;
        const std::vector<std::string> names = disk->list(parent);
        const auto is_removal = [](const std::string& name) {
            return parse_hidden_name(name, removal_suffix).has_value();
        };
        // A save that was overtaken while a removal had it stays there, with what is still to be moved in.
        if (std::ranges::any_of(names, is_removal))
            return;
        EXPECT_EQ(names, present_before_ ? std::vector<std::string>{"step"}
                                         : (std::vector<std::string>{"old", "step"}))
            << what;
    }

    // Which of these models lies at the target; none where it has bytes of several.
    static std::string loaded(Reactor& on, const std::vector<Model>& models) {
        const std::shared_ptr<Reactor> shared(std::shared_ptr<void>(), &on);
        HuggingFaceStorageReader reader(target, {.verification = Verification::off}, shared);
        auto metadata = reader.read_metadata();
        if (!metadata)
            return metadata.error().message();
        std::vector<std::vector<std::byte>> memory;
        std::vector<LocalDestination> destinations;
        for (const TestTensor& each : models[0]) {
            memory.emplace_back(each.bytes.size());
            destinations.push_back(
                {.fqn = each.name,
                 .data = {.data = memory.back().data(), .dtype = each.dtype, .shape = each.shape}});
        }
        DefaultLoadPlanner planner(std::move(destinations));
        const auto plan = planner.create_local_plan(*metadata);
        if (!plan)
            return plan.error().message();
        if (const auto read = reader.read_data(*plan, planner); !read)
            return read.error().message();
        for (const Model& model : models)
            if (std::ranges::equal(memory, model, {}, {}, &TestTensor::bytes))
                return "one of them";
        return "a mixture";
    }

    // One stops, then the other; both go on, one after the other.
    void meet(const Somebody::Work& one, const Somebody::Work& other, bool present) {
        Somebody first(disk), second(disk);
        std::uint64_t meetings = 0;
        bool first_stops = true;
        for (std::uint64_t i = 0; first_stops && !HasFailure(); ++i)
            for (std::uint64_t j = 0;; ++j) {
                SCOPED_TRACE(fmt::format("stopped before operations {} and {}, target {}", i, j,
                                         present ? "present" : "absent"));
                begin(present);
                first_stops = first.run(one, i);
                const bool second_stops = second.run(other, j);
                first.finish();
                second.finish();
                check();
                ++meetings;
                if (!second_stops || HasFailure())
                    break;
            }
        RecordProperty("meetings", std::to_string(meetings));
        EXPECT_GT(meetings, 50u);
    }

    Model old_;
    StepCheckpoint old_checkpoint_;
    std::vector<Saving> savings_;
    SimulatedTree absent_, present_;
    bool present_before_ = false;
    bool removing_ = false;
    std::uint64_t checked_ = 0;
};

TEST_F(MeetingCommits, OfAnOlderAndANewerSave) {
    for (const bool present : {true, false}) {
        meet(savings_[0].commit(), savings_[1].commit(), present);
        meet(savings_[1].commit(), savings_[0].commit(), present);
    }
}

// `recover` with everything that may be cleared away, or a reader that finds a switch to be finished.
TEST_F(MeetingCommits, OfASaveAndARecovery) {
    const Somebody::Work recovery = [](Reactor& on) {
        EXPECT_TRUE(recover_checkpoint(target, on, StaleAttempts::all));
    };
    for (const bool present : {true, false}) {
        meet(savings_[0].commit(), recovery, present);
        meet(recovery, savings_[0].commit(), present);
    }
}

// `prune`, which renames what it was to remove, and gives back what has been saved to meanwhile.
TEST_F(MeetingCommits, OfASaveAndARemoval) {
    meet(savings_[0].commit(), removal(), true);
    meet(removal(), savings_[0].commit(), true);
}

// A save that was committed and cut off is neither's to lose, under whatever name it is met.
TEST_F(MeetingCommits, OfARecoveryAndARemovalInASwitch) {
    begin(true);
    disk->inject({.op = Opcode::rename,
                  .path_contains = ".safetensors",
                  .times = Fault::for_ever,
                  .error = EIO});
    savings_[0].commit()(*reactor);
    disk->clear_faults();
    ASSERT_TRUE(savings_[0].published);
    const SimulatedTree tree = disk->now();
    const Somebody::Work recovery = [&](Reactor& on) {
        (void)remove_attempts(on, parent,
                              {attempt_directory_name("step", savings_[0].input.attempt)});
    };
    Somebody recovering(disk), removing(disk);
    bool recovering_stops = true;
    std::uint64_t meetings = 0;
    for (std::uint64_t i = 0; recovering_stops && !HasFailure(); ++i)
        for (std::uint64_t j = 0;; ++j) {
            SCOPED_TRACE(fmt::format("stopped before operations {} and {}", i, j));
            disk->restart(tree);
            recovering_stops = recovering.run(recovery, i);
            const bool removing_stops = removing.run(removal(), j);
            recovering.finish();
            removing.finish();
            EXPECT_EQ(differences(savings_[0].model, {1, 0}, target, reactor), "");
            ++meetings;
            if (!removing_stops || HasFailure())
                break;
        }
    EXPECT_GT(meetings, 50u);
}

// Where names and places of the files are the same before and after, and only a manifest could tell them apart: of a
// checkpoint of others there is none.
TEST_F(MeetingCommits, OfASaveAndAReader) {
    begin(true);
    const Model before = savings_[0].model, after = small_model(500);
    Saving saving = prepare(after, two_files(after));
    savings_[0].commit()(*reactor);
    ASSERT_TRUE(savings_[0].said) << savings_[0].error;
    Somebody saver(disk), reader(disk);
    std::string found;
    const Somebody::Work load = [&](Reactor& on) { found = loaded(on, {before, after}); };
    std::uint64_t meetings = 0;
    for (const bool manifest : {true, false}) {
        if (!manifest)
            perform({.op = Opcode::unlink, .path = join(target, std::string(manifest_name))});
        const SimulatedTree tree = disk->now();
        bool reader_stops = true;
        for (std::uint64_t i = 0; reader_stops && !HasFailure(); ++i)
            for (std::uint64_t j = 0;; ++j) {
                SCOPED_TRACE(fmt::format("stopped before operations {} and {}, {} a manifest", i, j,
                                         manifest ? "with" : "without"));
                disk->restart(tree);
                reader_stops = reader.run(load, i);
                const bool saver_stops = saver.run(saving.commit(), j);
                reader.finish();
                saver.finish();
                EXPECT_TRUE(found == "one of them") << found;
                EXPECT_TRUE(saving.said) << saving.error;
                ++meetings;
                if (!saver_stops || HasFailure())
                    break;
            }
        disk->restart(tree);
    }
    EXPECT_GT(meetings, 100u);
}

// Whoever stopped in somebody's switch goes on when that has been finished and another save has been made since.
TEST_F(MeetingCommits, AHelperThatComesTooLateChangesNothing) {
    Somebody saving(disk), helper(disk), next(disk);
    const Somebody::Work help = [](Reactor& on) {
        (void)finish_switch(on, make_target_path(target));
    };
    bool saving_stops = true;
    for (std::uint64_t i = 0; saving_stops && !HasFailure(); ++i)
        for (std::uint64_t j = 0;; ++j) {
            SCOPED_TRACE(fmt::format("stopped before operations {} and {}", i, j));
            begin(true);
            saving_stops = saving.run(savings_[0].commit(), i);
            const bool helper_stops = helper.run(help, j);
            saving.finish();
            next.run_to_the_end(savings_[1].commit());
            helper.finish();
            EXPECT_TRUE(savings_[1].said) << savings_[1].error;
            check(&savings_[1]);
            if (!helper_stops || HasFailure())
                break;
        }
}

// The one whose switch it is comes back last.
TEST_F(MeetingCommits, ASaveWhoseSwitchOthersFinishedChangesNothingMore) {
    Somebody saving(disk), next(disk);
    bool stops = true;
    for (std::uint64_t i = 0; stops && !HasFailure(); ++i) {
        SCOPED_TRACE(fmt::format("stopped before operation {}", i));
        begin(true);
        stops = saving.run(savings_[0].commit(), i);
        next.run_to_the_end(savings_[1].commit());
        EXPECT_TRUE(savings_[1].said) << savings_[1].error;
        saving.finish();
        check(stops ? &savings_[1] : nullptr);
    }
}

// Then the attempt is left to the one who saved: nobody else knows that it is done.
TEST_F(MeetingCommits, OfASaveAndAHelperThatCannotClearAway) {
    Somebody saving(disk);
    std::uint64_t left = 0;
    for (const Opcode op : {Opcode::list, Opcode::remove_directory}) {
        bool stops = true;
        for (std::uint64_t i = 0; stops && !HasFailure(); ++i) {
            SCOPED_TRACE(fmt::format("stopped before operation {}", i));
            begin(true);
            stops = saving.run(savings_[0].commit(), i);
            disk->inject({.op = op,
                          .path_contains = savings_[0].input.attempt + ".tmp",
                          .times = Fault::for_ever,
                          .error = EIO});
            (void)finish_switch(*reactor, make_target_path(target));
            left += disk->hits().empty() ? 0 : 1;
            disk->clear_faults();
            saving.finish();
            EXPECT_TRUE(savings_[0].said) << savings_[0].error;
            EXPECT_EQ(disk->list(parent).size(),
                      savings_.size()); // the others' attempts, and the target
            check(&savings_[0]);
        }
    }
    EXPECT_GT(left, 5u);
}

// Any of them, any number of stops, and in one of three meetings any operation may fail. MEETINGS and MEETINGS_SEED ask for others.
TEST_F(MeetingCommits, AtRandom) {
    const auto number = [](const char* name, std::uint64_t otherwise) {
        const char* text = std::getenv(name);
        return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
    };
    const std::uint64_t count = number("MEETINGS", 1000);
    const std::uint64_t first_seed = number("MEETINGS_SEED", 1);
    std::vector<Somebody::Work> works;
    for (Saving& saving : savings_)
        works.push_back(saving.commit());
    for (int i = 0; i < 2; ++i)
        works.emplace_back([&](Reactor& on) {
            (void)remove_attempts(on, parent,
                                  {attempt_directory_name("step", savings_[0].input.attempt)});
        });
    works.emplace_back([](Reactor& on) { (void)finish_switch(on, make_target_path(target)); });
    works.push_back(removal());
    works.emplace_back(
        [](Reactor& on) { (void)recover_checkpoint(target, on, StaleAttempts::all); });
    std::vector<std::unique_ptr<Somebody>> all;
    for (std::size_t i = 0; i < works.size(); ++i)
        all.push_back(std::make_unique<Somebody>(disk));
    for (std::uint64_t seed = first_seed; seed < first_seed + count && !HasFailure(); ++seed) {
        SCOPED_TRACE(fmt::format("MEETINGS_SEED={}", seed));
        std::mt19937_64 random(seed);
        begin(random() % 4 != 0);
        const unsigned one_in = random() % 3 == 0 ? 10u << random() % 4 : 0;
        for (const auto& each : all)
            each->fail_one_in(one_in, random());
        // Long and short ways between two stops.
        const auto stop = [&] { return random() % (std::uint64_t{1} << (1 + random() % 6)); };
        std::vector<std::size_t> under_way;
        for (std::size_t i = 0; i < works.size(); ++i)
            if (i == 0 || random() % 2 == 0)
                under_way.push_back(i);
        std::ranges::shuffle(under_way, random);
        for (const std::size_t i : under_way)
            (void)all[i]->run(works[i], stop());
        std::vector<std::size_t> stopped = under_way;
        for (int stops = 0; stops < 40 && !stopped.empty(); ++stops) {
            const std::size_t chosen = random() % stopped.size();
            if (!all[stopped[chosen]]->go_on(stop()))
                stopped.erase(stopped.begin() + static_cast<std::ptrdiff_t>(chosen));
        }
        for (const std::size_t i : under_way)
            all[i]->finish();
        if (one_in != 0) { // a removal that could not give back what it must
            EXPECT_TRUE(recover_checkpoint(target, *reactor));
        }
        check();
    }
}

} // namespace
} // namespace safering::test
