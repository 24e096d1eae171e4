#include "recovery.hpp"

#include <algorithm>
#include <cerrno>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "io/simulated_disk.hpp"

namespace safering::test {

std::shared_ptr<Reactor> crash_reactor(const std::shared_ptr<SimulatedDisk>& disk) {
    // The smallest buffers there are: a model of kilobytes has several cells.
    return make_simulated_reactor(disk, {.buffer_bytes = 4096, .buffer_count = 2});
}

Result<Model> load_model(const std::string& path, const std::shared_ptr<Reactor>& reactor,
                         const ReaderOptions& options) {
    HuggingFaceStorageReader reader(path, options, reactor);
    auto metadata = reader.read_metadata();
    if (!metadata)
        return std::unexpected(std::move(metadata.error()));
    Model model;
    for (const auto& [fqn, tensor] : metadata->tensors)
        model.push_back({fqn.str(), tensor.dtype, tensor.size,
                         std::vector<std::byte>(byte_size(tensor.dtype, tensor.size).value(),
                                                std::byte{0xA5})});
    DefaultLoadPlanner planner(whole_destinations(model));
    auto plan = planner.create_local_plan(*metadata);
    if (!plan)
        return std::unexpected(std::move(plan.error()));
    auto loaded = reader.read_data(*plan, planner);
    if (!loaded)
        return std::unexpected(std::move(loaded.error()));
    return model;
}

std::string difference(const Model& expected, const Model& found) {
    if (expected.size() != found.size())
        return fmt::format("{} tensors of {}", found.size(), expected.size());
    for (const TestTensor& tensor : expected) {
        const auto same = std::ranges::find(found, tensor.name, &TestTensor::name);
        if (same == found.end())
            return fmt::format("\"{}\" is missing", tensor.name);
        if (same->dtype != tensor.dtype || same->shape != tensor.shape ||
            same->bytes != tensor.bytes)
            return fmt::format("\"{}\" differs", tensor.name);
    }
    return {};
}

namespace {

Outcome judge(const Expectations& expectations, const SimulatedDisk& disk,
              const Result<Model>& loaded) {
    std::vector<std::string> files;
    if (disk.exists(expectations.path))
        files = disk.list(expectations.path);
    std::erase_if(files, [&](const std::string& name) {
        return std::ranges::count(expectations.optional, name) != 0;
    });
    if (!loaded) {
        const bool none = loaded.error().code == Errc::checkpoint_not_found && files.empty();
        return none ? Outcome{Found::nothing, {}}
                    : Outcome{Found::neither, loaded.error().message()};
    }
    const auto is = [&](const Expected& expected) {
        return difference(expected.model, *loaded).empty();
    };
    // A conversion in place has the same tensors before and after: the files tell.
    const bool fresh = is(expectations.fresh);
    const bool old = expectations.old && is(*expectations.old);
    if (old && (!fresh || files == expectations.old->files))
        return {Found::old, files == expectations.old->files
                                ? std::string()
                                : fmt::format("the old checkpoint has other files: {}",
                                              fmt::join(files, ", "))};
    if (fresh)
        return {Found::fresh,
                files == expectations.fresh.files
                    ? std::string()
                    : fmt::format("left over or missing beside the new checkpoint: {}",
                                  fmt::join(files, ", "))};
    return {Found::neither,
            "a mixture: against the new one " + difference(expectations.fresh.model, *loaded)};
}

} // namespace

Outcome recover(const Expectations& expectations, const std::shared_ptr<SimulatedDisk>& disk,
                std::shared_ptr<Reactor> reactor) {
    if (!reactor)
        reactor = crash_reactor(disk);
    return judge(expectations, *disk, load_model(expectations.path, reactor));
}

std::string check_deeply(const Expectations& expectations, const SimulatedTree& tree, Found found) {
    const std::string& path = expectations.path;
    auto read_only = SimulatedDisk::holding(tree);
    for (const Opcode op : {Opcode::rename, Opcode::unlink, Opcode::remove_directory})
        read_only->inject({.op = op, .times = Fault::for_ever, .error = EACCES});
    const auto seen = load_model(path, crash_reactor(read_only));
    const Model* expected = found == Found::fresh ? &expectations.fresh.model
                            : found == Found::old ? &expectations.old->model
                                                  : nullptr;
    if (seen.has_value() != (expected != nullptr))
        return "a reader that may not write: " +
               (seen ? std::string("finds something") : seen.error().message());
    if (seen && !difference(*expected, *seen).empty())
        return "a reader that may not write: " + difference(*expected, *seen);
    const auto disk = SimulatedDisk::holding(tree);
    const auto reactor = crash_reactor(disk);
    if (expected != nullptr) {
        const auto verified = verify_checkpoint(path, *reactor);
        if (!verified)
            return "verify: " + verified.error().message();
        if (!verified->findings.empty())
            return "verify: " + verified->findings[0].message();
    }
    if (!expectations.save_again)
        return {};
    Model third = expectations.fresh.model;
    for (TestTensor& tensor : third)
        for (std::byte& byte : tensor.bytes)
            byte ^= std::byte{0x5A};
    const auto saved = expectations.save_again(third, reactor);
    if (!saved)
        return "the next save: " + saved.error().message();
    const auto loaded = load_model(path, reactor);
    if (!loaded)
        return "after the next save: " + loaded.error().message();
    if (const std::string differs = difference(third, *loaded); !differs.empty())
        return "after the next save: " + differs;
    if (disk->list("/ckpt") != expectations.beside)
        return fmt::format("left over after the next save: {}",
                           fmt::join(disk->list("/ckpt"), ", "));
    return {};
}

RecoveryOracle::RecoveryOracle(const Expectations& expectations, Replay& replay,
                               unsigned deep_every)
    : expectations_(expectations), replay_(replay), deep_every_(deep_every) {}

std::uint64_t RecoveryOracle::answer(const Node& node, const NameTree& names,
                                     const std::vector<std::uint64_t>& content) const {
    const Inode inode = names.find(node.path);
    if (inode == 0)
        return 0;
    const FileKind kind = replay_.kinds[inode];
    if (kind != FileKind::directory)
        return mix(1, content[inode]);
    std::uint64_t entries = 2;
    if (node.question.op == Opcode::list)
        for (const NameTree::Entry& entry : names.entries())
            if (entry.directory == inode)
                entries += mix(entry.name, static_cast<std::uint64_t>(replay_.kinds[entry.inode]));
    return mix(2, entries);
}

Outcome RecoveryOracle::run(CrashPoint& point, const CrashPoint::Choice& choice, std::uint64_t hash,
                            std::vector<Question>& questions, bool& changes_disk) {
    ++runs_;
    SimulatedTree tree = point.materialise(choice);
    // The enumeration works on a light copy of the tree; what is run on must be the same state.
    std::vector<FileKind> kinds = replay_.kinds;
    const NameTree real(tree, replay_.names, kinds);
    std::vector<std::uint64_t> content(kinds.size());
    for (const NameTree::Entry& entry : real.entries())
        content[entry.inode] = hash_of_bytes(tree.inode(entry.inode)->data);
    SAFERING_ASSERT(StateHash(real, kinds).value(content) == hash);

    const auto disk = SimulatedDisk::holding(tree);
    disk->intercept([&](Operation& operation) -> std::optional<Completion> {
        const Request& request = operation.request;
        const bool asks = request.op == Opcode::stat || request.op == Opcode::list ||
                          (request.op == Opcode::open && request.mode != OpenMode::create &&
                           request.mode != OpenMode::update);
        if (request.op == Opcode::read || request.op == Opcode::close || changes_disk)
            return std::nullopt;
        if (asks)
            questions.push_back({request.op, request.path});
        else
            changes_disk = true;
        return std::nullopt;
    });
    Outcome outcome = recover(expectations_, disk);
    if (outcome.problem.empty() && outcome.found != Found::neither && deep_every_ != 0 &&
        runs_ % deep_every_ == 0) {
        ++deep_runs_;
        outcome.problem = check_deeply(expectations_, tree, outcome.found);
    }
    return outcome;
}

void RecoveryOracle::learn(const std::vector<Question>& questions, bool changes_disk,
                           const Outcome& outcome, const NameTree& names,
                           const std::vector<std::uint64_t>& content, std::uint64_t hash) {
    std::size_t at = 0;
    for (const Question& question : questions) {
        if (!nodes_[at].asked) {
            nodes_[at].asked = true;
            nodes_[at].question = question;
            nodes_[at].path = replay_.names.path(question.path);
        }
        // The reader is deterministic, or its outcomes could not be shared.
        SAFERING_ASSERT(nodes_[at].question.op == question.op &&
                        nodes_[at].question.path == question.path);
        const std::uint64_t found = answer(nodes_[at], names, content);
        const auto [next, inserted] = nodes_[at].next.try_emplace(found, nodes_.size());
        at = next->second;
        if (inserted)
            nodes_.emplace_back();
    }
    SAFERING_ASSERT(!nodes_[at].asked);
    if (changes_disk) {
        nodes_[at].changes_disk = true;
        by_state_.emplace(hash, outcome);
    } else {
        nodes_[at].outcome = outcome;
    }
}

Outcome RecoveryOracle::outcome(CrashPoint& point, const CrashPoint::Choice& choice,
                                const NameTree& names, const std::vector<std::uint64_t>& content,
                                std::uint64_t hash) {
    for (std::size_t at = 0;;) {
        const Node& node = nodes_[at];
        if (node.outcome)
            return *node.outcome;
        if (node.changes_disk) {
            if (const auto known = by_state_.find(hash); known != by_state_.end())
                return known->second;
            break;
        }
        if (!node.asked)
            break;
        const auto next = node.next.find(answer(node, names, content));
        if (next == node.next.end())
            break;
        at = next->second;
    }
    std::vector<Question> questions;
    bool changes_disk = false;
    const Outcome outcome = run(point, choice, hash, questions, changes_disk);
    learn(questions, changes_disk, outcome, names, content, hash);
    return outcome;
}

} // namespace safering::test
