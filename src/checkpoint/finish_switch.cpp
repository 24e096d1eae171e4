#include "checkpoint/finish_switch.hpp"

#include <algorithm>
#include <iterator>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "checkpoint/attempt_directory.hpp"
#include "checkpoint/manifest.hpp"
#include "checkpoint/perform.hpp"

namespace safering::checkpoint {

namespace {

// What is under redo_name in a target.
struct FoundSwitch {
    std::optional<RedoRecord> record;
    /// Directories whose record is gone, as their switch is done.
    std::vector<std::string> ended;
    /// There is such a directory, or such a file: the mark of somebody who revoked an attempt at the moment at which it
    /// became the target.
    enum class Kind { none, directory, mark } kind = Kind::none;
};

Error not_a_switch(const std::string& path, std::string detail) {
    return {.code = Errc::checkpoint_not_a_file,
            .operation = "read redo record",
            .file = path,
            .detail = std::move(detail) + "; move it away"};
}

// The kind of a name itself: names below a link would lie elsewhere. Nothing where it is not there (any more).
Result<std::optional<FileKind>> kind_of(Reactor& reactor, const std::string& directory,
                                        std::string_view name) {
    auto listed = perform(reactor, {.op = Opcode::list, .path = directory});
    if (!listed)
        return std::unexpected(std::move(listed.error()));
    const auto found = std::ranges::find(listed->entries, name, &DirectoryEntry::name);
    return found == listed->entries.end() ? std::nullopt : std::optional(found->kind);
}

Result<FoundSwitch> find_switch(Reactor& reactor, const std::string& directory) {
    FoundSwitch found;
    const std::string path = join(directory, std::string(redo_name));
    auto listed = perform(reactor, {.op = Opcode::list, .path = path});
    if (!listed && is_absent(listed.error()))
        return found;
    const bool is_other = !listed && listed.error().code == std::errc::not_a_directory;
    if (!listed && !is_other)
        return std::unexpected(std::move(listed.error()));
    auto kind = kind_of(reactor, directory, redo_name);
    if (!kind && kind.error().code == std::errc::not_a_directory)
        return found; // a single file
    if (!kind)
        return std::unexpected(std::move(kind.error()));
    if (!*kind)
        return found;
    if (*kind == FileKind::regular) {
        found.kind = FoundSwitch::Kind::mark;
        return found;
    }
    if (*kind != FileKind::directory || is_other)
        return std::unexpected(not_a_switch(path, "it is no directory"));
    found.kind = FoundSwitch::Kind::directory;
    for (const DirectoryEntry& entry : listed->entries) {
        if (!is_attempt_id(entry.name) || entry.kind != FileKind::directory)
            return std::unexpected(
                not_a_switch(join(path, entry.name), "it is no directory of a switch"));
        const std::string file = redo_path(directory, entry.name);
        auto text = read_small_file(reactor, file, OpenMode::read_strict, record_limit_bytes);
        if (!text && is_absent(text.error())) {
            found.ended.push_back(entry.name);
            continue;
        }
        if (!text)
            return std::unexpected(std::move(text.error()));
        auto record = parse_redo_record(*text, file);
        if (!record)
            return std::unexpected(std::move(record.error()));
        if (record->attempt != entry.name)
            return std::unexpected(Error{.code = Errc::checkpoint_bad_manifest,
                                         .operation = "read redo record",
                                         .file = file,
                                         .detail = "it is another attempt's"});
        found.record = std::move(*record);
    }
    return found;
}

// What a crash left of a switch that was done: its directories, without a record. Those of another that has begun since
// are not empty, and stay.
Result<void> remove_ended(Reactor& reactor, const std::string& directory,
                          const FoundSwitch& found) {
    const std::string redo = join(directory, std::string(redo_name));
    std::vector<Request> requests;
    for (const std::string& attempt : found.ended)
        requests.push_back({.op = Opcode::remove_directory, .path = join(redo, attempt)});
    if (found.kind == FoundSwitch::Kind::directory)
        requests.push_back({.op = Opcode::remove_directory, .path = redo});
    if (found.kind == FoundSwitch::Kind::mark)
        requests.push_back({.op = Opcode::unlink, .path = redo});
    for (const Request& request : requests) {
        const Completion removed = reactor.wait(request);
        if (removed.error && !is_not_empty(removed) && !is_absent(removed))
            return std::unexpected(to_error(request, removed));
    }
    return {};
}

// Whether the target holds the manifest of this attempt, which moves in after all data files.
Result<bool> has_manifest_of(Reactor& reactor, const TargetPath& target,
                             const std::string& attempt) {
    const std::string path = join(target.path, std::string(manifest_name));
    auto text = read_small_file(reactor, path, OpenMode::read_strict, record_limit_bytes);
    if (!text && is_absent(text.error()))
        return false;
    if (!text)
        return std::unexpected(std::move(text.error()));
    const auto manifest = parse_manifest(*text, path);
    return manifest && manifest->attempt == attempt;
}

} // namespace

Result<std::optional<RedoRecord>> read_redo_record(Reactor& reactor, const std::string& directory) {
    auto found = find_switch(reactor, directory);
    if (!found)
        return std::unexpected(std::move(found.error()));
    return std::move(found->record);
}

Result<std::vector<std::string>> still_to_move(Reactor& reactor, const std::string& parent,
                                               const RedoRecord& record) {
    auto listed = perform(reactor, {.op = Opcode::list, .path = join(parent, record.directory)});
    if (!listed && !is_absent(listed.error()))
        return std::unexpected(std::move(listed.error()));
    std::set<std::string_view> there;
    if (listed)
        for (const DirectoryEntry& entry : listed->entries)
            there.insert(entry.name);
    std::vector<std::string> names;
    std::ranges::copy_if(record.move, std::back_inserter(names),
                         [&](const std::string& name) { return there.contains(name); });
    return names;
}

Result<void> run_switch(Reactor& reactor, const TargetPath& target, const RedoRecord& record,
                        std::vector<std::string>& notes) {
    constexpr int tries = 3;
    for (int i = 0;; ++i) {
        RedoSwitch move(target, record, RedoSwitch::Part::move_in);
        if (auto moved = drive(reactor, move); !moved)
            return moved;
        // Somebody else may have finished it meanwhile, and saved again: then there is nothing to clean up.
        auto current = read_redo_record(reactor, target.path);
        if (!current)
            return std::unexpected(std::move(current.error()));
        if (!*current || **current != record)
            return {};
        // A move takes what it does not find as moved. It finds nothing either while the target has another name: while
        // somebody removes it, sees that it was saved to, and gives it back.
        auto left = still_to_move(reactor, target.parent, record);
        if (!left)
            return std::unexpected(std::move(left.error()));
        if (left->empty())
            break;
        if (i + 1 == tries)
            return std::unexpected(
                Error{.code = Errc::checkpoint_conflict,
                      .operation = "finish switch",
                      .file = target.path,
                      .detail = fmt::format("it is renamed again and again while {} is moved in; "
                                            "what is left is moved in when it is opened next",
                                            left->front())});
    }
    auto moved_in = has_manifest_of(reactor, target, record.attempt);
    if (!moved_in)
        return std::unexpected(std::move(moved_in.error()));
    const std::string attempt_directory = join(target.parent, record.directory);
    if (!*moved_in)
        return std::unexpected(Error{
            .code = Errc::checkpoint_conflict,
            .operation = "finish switch",
            .file = target.path,
            .detail = fmt::format("a committed save is still to be moved in from {}, which is not "
                                  "there; bring it beside the checkpoint. Where none of its files "
                                  "has been moved in, removing the directory {} brings back what "
                                  "the checkpoint held before; where some have, nothing does",
                                  attempt_directory, redo_name)});
    RedoSwitch clean_up(target, record, RedoSwitch::Part::clean_up);
    if (auto cleaned = drive(reactor, clean_up); !cleaned) {
        if (!clean_up.record_removed())
            return cleaned;
        notes.push_back("the redo record may come back after a power cut, and the next open then "
                        "removes it: " +
                        cleaned.error().message());
    }
    // From here on the switch is done; what stays is litter.
    auto removed = remove_attempt_directory(reactor, attempt_directory);
    if (!removed)
        notes.push_back(removed.error().message());
    auto synced = perform(reactor, {.op = Opcode::sync_directory, .path = target.parent});
    if (!synced)
        notes.push_back(synced.error().message());
    return {};
}

Result<bool> finish_switch(Reactor& reactor, const TargetPath& target) {
    auto found = find_switch(reactor, target.path);
    if (!found)
        return std::unexpected(std::move(found.error()));
    if (!found->record) {
        if (auto removed = remove_ended(reactor, target.path, *found); !removed)
            return std::unexpected(std::move(removed.error()));
        return false;
    }
    std::vector<std::string> notes; // a leftover is the next save's to clean away
    if (auto done = run_switch(reactor, target, *found->record, notes); !done)
        return std::unexpected(std::move(done.error()));
    return true;
}

} // namespace safering::checkpoint
