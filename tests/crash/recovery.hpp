// Recovery from a crash state: what our reader finds on a disk, and which states it cannot tell apart.
//
// The reader is a function of what it is told: a path that it stats, opens or lists, and the bytes behind it. So
// the questions of a run, with a hash of each answer, form a tree, and a state whose answers lead to a leaf has
// the outcome of that leaf without another run. As soon as the reader changes the disk (it finishes a switch),
// the whole state is the key. RecoveryOracle keeps both, and checks that the reader asks the same after the same
// answers.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "../checkpoint/model.hpp"
#include "crash_point.hpp"

namespace safering::test {

/// A checkpoint as it should be: its tensors, and the names in its directory.
struct Expected {
    Model model;
    std::vector<std::string> files;
};

/// What a run may leave, and how to go on afterwards.
struct Expectations {
    std::string path = "/ckpt/step";
    std::optional<Expected> old;
    Expected fresh;
    /// A save of a third model into the same target; after it only `beside` is in the parent.
    std::function<Result<SaveReport>(const Model&, const std::shared_ptr<Reactor>&)> save_again;
    std::vector<std::string> beside{"step"};
    /// Names in the target that may be there or not.
    std::vector<std::string> optional{};
};

enum class Found { nothing, old, fresh, neither };
struct Outcome {
    Found found = Found::neither;
    /// What is wrong, whatever was found.
    std::string problem;
};

std::shared_ptr<Reactor> crash_reactor(const std::shared_ptr<SimulatedDisk>& disk);

/// Loads the whole checkpoint.
Result<Model> load_model(const std::string& path, const std::shared_ptr<Reactor>& reactor,
                         const ReaderOptions& options = {});
/// "" where they hold the same tensors.
std::string difference(const Model& expected, const Model& found);

/// What the reader finds on `disk`, and whether it left the target tidy. By a reactor of that disk, or one of its own.
Outcome recover(const Expectations& expectations, const std::shared_ptr<SimulatedDisk>& disk,
                std::shared_ptr<Reactor> reactor = nullptr);
/// Further demands on a state with this outcome: verify has no finding, a reader that may not write finds the same,
/// and a save into the target succeeds and leaves nothing beside it. "" where they hold.
std::string check_deeply(const Expectations& expectations, const SimulatedTree& tree, Found found);

class RecoveryOracle {
  public:
    /// One run in `deep_every` is checked deeply as well; 0: none.
    RecoveryOracle(const Expectations& expectations, Replay& replay, unsigned deep_every);

    Outcome outcome(CrashPoint& point, const CrashPoint::Choice& choice, const NameTree& names,
                    const std::vector<std::uint64_t>& content, std::uint64_t hash);
    std::uint64_t runs() const { return runs_; }
    std::uint64_t deep_runs() const { return deep_runs_; }

  private:
    struct Question {
        Opcode op = Opcode::stat;
        std::string path;
    };
    struct Node {
        Question question;
        std::vector<std::uint32_t> path;
        bool asked = false;
        bool changes_disk = false;
        std::optional<Outcome> outcome;
        std::unordered_map<std::uint64_t, std::size_t> next;
    };

    std::uint64_t answer(const Node& node, const NameTree& names,
                         const std::vector<std::uint64_t>& content) const;
    Outcome run(CrashPoint& point, const CrashPoint::Choice& choice, std::uint64_t hash,
                std::vector<Question>& questions, bool& changes_disk);
    void learn(const std::vector<Question>& questions, bool changes_disk, const Outcome& outcome,
               const NameTree& names, const std::vector<std::uint64_t>& content,
               std::uint64_t hash);

    const Expectations& expectations_;
    Replay& replay_;
    unsigned deep_every_;
    std::vector<Node> nodes_{1};
    std::unordered_map<std::uint64_t, Outcome> by_state_;
    std::uint64_t runs_ = 0;
    std::uint64_t deep_runs_ = 0;
};

} // namespace safering::test
