#include "checkpoint/commit_checkpoint.hpp"

#include <algorithm>
#include <set>

#include "checkpoint/attempt_directory.hpp"
#include "checkpoint/finish_switch.hpp"
#include "checkpoint/index.hpp"
#include "checkpoint/manifest.hpp"
#include "checkpoint/perform.hpp"
#include "out_of_memory.hpp"
#include "plan/layout.hpp"

namespace safering::checkpoint {

namespace {

Result<bool> is_directory(Reactor& reactor, const std::string& path) {
    auto status = perform(reactor, {.op = Opcode::stat, .path = path});
    if (!status && is_absent(status.error()))
        return false;
    if (!status)
        return std::unexpected(std::move(status.error()));
    if (status->status.kind != FileKind::directory)
        return std::unexpected(Error{.code = Errc::checkpoint_not_a_file,
                                     .operation = "commit",
                                     .file = path,
                                     .detail = "it exists and is no directory; move it away"});
    return true;
}

// What the checkpoint in the target calls its own, by manifest and index; damaged ones name nothing.
std::set<std::string> listed_files(Reactor& reactor, const std::string& directory) {
    std::set<std::string> names;
    const auto read = [&](std::string_view name) {
        return read_small_file(reactor, join(directory, std::string(name)), OpenMode::read_strict,
                               record_limit_bytes);
    };
    if (const auto text = read(manifest_name))
        if (const auto manifest = parse_manifest(*text, directory))
            for (const ManifestFile& file : manifest->files)
                names.insert(file.name);
    if (const auto text = read(index_name))
        if (const auto weight_map = parse_index(*text, directory))
            for (const auto& [fqn, file] : *weight_map)
                names.insert(file);
    return names;
}

// Names that a reader would take for the new checkpoint's own: those of the replaced checkpoint, and those
// that only a checkpoint's data files have. Anything else is somebody else's.
Result<std::vector<std::string>> stale_files(Reactor& reactor, const CommitInput& input) {
    auto entries = perform(reactor, {.op = Opcode::list, .path = input.target.path});
    if (!entries)
        return std::unexpected(std::move(entries.error()));
    const std::set<std::string> listed = listed_files(reactor, input.target.path);
    const std::set<std::string_view> fresh(input.data_files.begin(), input.data_files.end());
    std::vector<std::string> stale;
    for (const DirectoryEntry& entry : entries->entries) {
        const bool replaced = fresh.contains(entry.name) || entry.name == manifest_name ||
                              (entry.name == index_name && !input.index.empty());
        if (replaced && entry.kind == FileKind::directory)
            return std::unexpected(Error{
                .code = Errc::checkpoint_not_a_file,
                .operation = "commit",
                .file = join(input.target.path, entry.name),
                .detail = "a directory has the name of a file of the checkpoint; move it away"});
        if (replaced || entry.kind == FileKind::directory)
            continue;
        const bool old_index = entry.name == index_name;
        if (old_index || listed.contains(entry.name) || plan::is_checkpoint_file_name(entry.name))
            stale.push_back(entry.name);
    }
    return stale;
}

// Says in `outcome` at once what cannot be undone: an exception may follow.
Result<void> commit_into(Reactor& reactor, CommitInput& input, CommitOutcome& outcome) {
    const auto failed = [](Error error) { return std::unexpected(std::move(error)); };
    auto present = is_directory(reactor, input.target.path);
    if (!present)
        return failed(std::move(present.error()));
    // Twice: a target that was absent may have been made meanwhile (by whoever writes config.json).
    for (input.target_present = *present;; input.target_present = true) {
        if (input.target_present) {
            auto finished = finish_switch(reactor, input.target);
            if (finished && *finished) // what that could not remove behind it is in this one's way
                finished = finish_switch(reactor, input.target);
            if (!finished)
                return failed(std::move(finished.error()));
            auto stale = stale_files(reactor, input);
            if (!stale)
                return failed(std::move(stale.error()));
            input.stale = std::move(*stale);
        }
        MetadataCommit commit(input);
        auto committed = drive(reactor, commit);
        outcome.published = commit.published();
        if (!committed) {
            if (commit.published())
                committed.error().detail +=
                    "; the new checkpoint is in place, but may not survive a power cut";
            else if (committed.error().code == std::errc::file_exists &&
                     committed.error().operation == name(Opcode::rename))
                committed.error().detail +=
                    "; another save is committing to this target at the same moment: save again";
            else if (committed.error().code == std::errc::file_exists ||
                     is_absent(committed.error()) ||
                     committed.error().code == std::errc::not_a_directory)
                committed.error().detail += "; a later save of this target, or a recovery, has "
                                            "taken this attempt away: save again";
            return failed(std::move(committed.error()));
        }
        if (commit.committed()) {
            outcome.replaced = input.target_present;
            if (!input.target_present)
                return {};
            if (auto switched =
                    run_switch(reactor, input.target, commit.redo_record(), outcome.notes);
                !switched) {
                switched.error().detail += "; the new checkpoint is committed, and the next open "
                                           "that may write here finishes "
                                           "moving its files";
                return failed(std::move(switched.error()));
            }
            return {};
        }
        SAFERING_ASSERT(commit.target_appeared());
        input.records_written = true;
    }
}

} // namespace

CommitOutcome commit_checkpoint(Reactor& reactor, CommitInput input) {
    CommitOutcome outcome;
    auto committed = or_out_of_memory([&] { return commit_into(reactor, input, outcome); });
    if (!committed) {
        outcome.error = std::move(committed.error());
        return outcome;
    }
    // The save has succeeded: what memory is lacking for now is left for the next one.
    (void)had_memory([&] {
        std::ranges::move(remove_attempts_up_to(reactor, input.target, input.attempt),
                          std::back_inserter(outcome.notes));
    });
    return outcome;
}

} // namespace safering::checkpoint
