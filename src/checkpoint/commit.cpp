#include "checkpoint/commit.hpp"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "checkpoint/attempt_directory.hpp"
#include "checkpoint/manifest.hpp"
#include "checkpoint/perform.hpp"
#include "checkpoint/strict_json.hpp"
#include "out_of_memory.hpp"

namespace safering::checkpoint {

namespace {

std::string names_text(const std::vector<std::string>& names) {
    std::string out = "[";
    for (std::size_t i = 0; i < names.size(); ++i)
        out += (i == 0 ? "" : ",") + json_string(names[i]);
    return out + "]";
}

bool failed_with(const Completion& completion, std::errc condition) {
    return completion.error == std::make_error_condition(condition);
}

// Both are allowed where a directory is to be removed or replaced.
bool is_not_empty(const Completion& completion) {
    return failed_with(completion, std::errc::directory_not_empty) ||
           failed_with(completion, std::errc::file_exists);
}

} // namespace

std::string to_text(const RedoRecord& record) {
    return seal_json(
        fmt::format(R"({{"safering_redo":1,"attempt":"{}","directory":{},"move":{},"remove":{})",
                    record.attempt, json_string(record.directory), names_text(record.move),
                    names_text(record.remove)));
}

Result<RedoRecord> parse_redo_record(std::string_view text, const std::string& file) {
    const auto bad = [&](Errc code, std::string detail) {
        return std::unexpected(Error{.code = code,
                                     .operation = "read redo record",
                                     .file = file,
                                     .detail = std::move(detail)});
    };
    if (!is_sealed_json(text))
        return bad(Errc::checkpoint_bad_manifest, "its own digest does not match: it was changed");
    auto root = parse_strict_json(text, 4, Errc::checkpoint_bad_manifest, "read redo record", file);
    if (!root)
        return std::unexpected(std::move(root.error()));
    RedoRecord record;
    try {
        if (root->at("safering_redo") != 1)
            return bad(Errc::checkpoint_bad_manifest,
                       "unknown format version; a newer safering may read it");
        record.attempt = root->at("attempt").get<std::string>();
        record.directory = root->at("directory").get<std::string>();
        record.move = root->at("move").get<std::vector<std::string>>();
        record.remove = root->at("remove").get<std::vector<std::string>>();
    } catch (const nlohmann::json::exception& error) {
        return bad(Errc::checkpoint_bad_manifest, error.what());
    }
    if (!is_attempt_id(record.attempt))
        return bad(Errc::checkpoint_bad_manifest, "attempt is not 32 hex digits");
    if (!is_plain_component(record.directory) ||
        !record.directory.ends_with("." + record.attempt + ".tmp"))
        return bad(
            Errc::checkpoint_unsafe_name,
            fmt::format("\"{}\" is no directory of this attempt", escaped(record.directory)));
    for (const auto* names : {&record.move, &record.remove})
        for (const std::string& name : *names)
            if (!is_safe_file_name(name) && name != manifest_name && name != index_name)
                return bad(Errc::checkpoint_unsafe_name,
                           fmt::format("\"{}\" is no file of a checkpoint", escaped(name)));
    return record;
}

std::string redo_path(const std::string& directory, const std::string& attempt) {
    return fmt::format("{}/{}/{}", join(directory, std::string(redo_name)), attempt,
                       redo_record_name);
}

std::vector<Request> StepMachine::next() {
    if (!error_)
        batch_ = step();
    else if (!released_)
        released_ = true, batch_ = release();
    else
        batch_.clear();
    return batch_;
}

void StepMachine::complete(std::span<const Completion> completions) {
    SAFERING_ASSERT(completions.size() == batch_.size());
    const bool releasing = error_.has_value();
    for (std::size_t i = 0; i < completions.size(); ++i)
        if (completions[i].error && !error_ && !tolerated(batch_[i], completions[i]))
            error_ = to_error(batch_[i], completions[i]);
    // A failed batch may still have opened files; the machine must see them to release them.
    if (!releasing)
        advance(completions);
    else
        close_files([](int) {}); // this batch has
}

RedoSwitch::RedoSwitch(TargetPath target, RedoRecord record, Part part)
    : target_(std::move(target)), record_(std::move(record)),
      attempt_directory_(join(target_.parent, record_.directory)),
      phase_(part == Part::move_in ? Phase::move : Phase::unlink_stale),
      end_(part == Part::move_in ? Phase::unlink_stale : Phase::done) {}

std::vector<Request> RedoSwitch::step() {
    const Request sync_target{.op = Opcode::sync_directory, .path = target_.path};
    if (phase_ == Phase::move && moved_ == record_.move.size())
        phase_ = Phase::sync_moved;
    if (phase_ == end_)
        return {};
    if (phase_ == Phase::unlink_stale && record_.remove.empty())
        phase_ = Phase::unlink_record; // nothing has changed since the last sync
    const std::string redo_directory = join(target_.path, std::string(redo_name));
    const std::string switch_directory = join(redo_directory, record_.attempt);
    switch (phase_) {
    case Phase::move: // one at a time: their order is a promise to readers that go by file names
        return {{.op = Opcode::rename,
                 .replace = true,
                 .path = join(attempt_directory_, record_.move[moved_]),
                 .new_path = join(target_.path, record_.move[moved_])}};
    case Phase::sync_moved:
        return {{.op = Opcode::sync_directory, .path = attempt_directory_}, sync_target};
    case Phase::unlink_stale: {
        std::vector<Request> batch;
        // A way that ends with this switch: a newer checkpoint's file of that name cannot be meant.
        for (const std::string& name : record_.remove)
            batch.push_back({.op = Opcode::unlink, .path = switch_directory + "/../../" + name});
        return batch;
    }
    case Phase::sync_unlinked: return {sync_target};
    case Phase::unlink_record:
        return {{.op = Opcode::unlink, .path = redo_path(target_.path, record_.attempt)}};
    case Phase::remove_switch: return {{.op = Opcode::remove_directory, .path = switch_directory}};
    case Phase::remove_redo: return {{.op = Opcode::remove_directory, .path = redo_directory}};
    case Phase::sync_target: return {sync_target};
    case Phase::done: break;
    }
    return {};
}

void RedoSwitch::advance(std::span<const Completion>) {
    if (error())
        return;
    if (phase_ == Phase::move)
        ++moved_;
    else
        phase_ = static_cast<Phase>(static_cast<int>(phase_) + 1);
}

bool RedoSwitch::tolerated(const Request& request, const Completion& completion) const {
    // Done already, by an earlier try or by somebody else who finishes this switch at the same time.
    if (request.op == Opcode::remove_directory && is_not_empty(completion))
        return true; // another switch has begun since
    const bool may_be_gone = request.op == Opcode::rename || request.op == Opcode::unlink ||
                             request.op == Opcode::remove_directory ||
                             request.path == attempt_directory_;
    return may_be_gone && failed_with(completion, std::errc::no_such_file_or_directory);
}

MetadataCommit::MetadataCommit(CommitInput input)
    : input_(std::move(input)), attempt_directory_(input_.target.attempt_directory(input_.attempt)),
      phase_(input_.target_present ? Phase::make_redo : Phase::open) {
    redo_ = {input_.attempt, attempt_directory_name(input_.target.name, input_.attempt),
             input_.data_files, input_.stale};
    redo_.move.emplace_back(manifest_name);
    if (!input_.index.empty())
        redo_.move.emplace_back(index_name);
    if (!input_.records_written) {
        records_.push_back(
            {join(attempt_directory_, std::string(manifest_name)), std::move(input_.manifest)});
        if (!input_.index.empty())
            records_.push_back(
                {join(attempt_directory_, std::string(index_name)), std::move(input_.index)});
    }
    if (input_.target_present)
        records_.push_back({redo_path(attempt_directory_, input_.attempt), to_text(redo_)});
}

std::vector<Request> MetadataCommit::step() {
    std::vector<Request> batch;
    const std::string redo(redo_name);
    const std::string redo_directory = join(attempt_directory_, redo);
    const std::string switch_directory = join(redo_directory, input_.attempt);
    switch (phase_) {
    case Phase::make_redo: return {{.op = Opcode::make_directory, .path = redo_directory}};
    case Phase::make_switch: return {{.op = Opcode::make_directory, .path = switch_directory}};
    case Phase::open:
        for (const Record& record : records_)
            batch.push_back({.op = Opcode::open, .mode = OpenMode::create, .path = record.path});
        return batch;
    case Phase::write:
        for (Record& record : records_)
            batch.push_back({.op = Opcode::write,
                             .file = record.file,
                             .data = reinterpret_cast<std::byte*>(record.text.data()),
                             .length = record.text.size(),
                             .path = record.path});
        return batch;
    case Phase::sync:
    case Phase::close:
        for (const Record& record : records_)
            batch.push_back({.op = phase_ == Phase::sync ? Opcode::fsync : Opcode::close,
                             .file = record.file,
                             .path = record.path});
        return batch;
    case Phase::sync_attempt:
        batch.push_back({.op = Opcode::sync_directory, .path = attempt_directory_});
        if (input_.target_present)
            for (const std::string& path : {switch_directory, redo_directory, input_.target.parent})
                batch.push_back({.op = Opcode::sync_directory, .path = path});
        return batch;
    case Phase::publish:
        // The slash: only a directory, not the mark of somebody who has revoked the attempt.
        if (input_.target_present)
            return {{.op = Opcode::rename,
                     .path = redo_directory + "/",
                     .new_path = join(input_.target.path, redo)}};
        return {{.op = Opcode::rename, .path = attempt_directory_, .new_path = input_.target.path}};
    case Phase::sync_publish:
        if (!input_.target_present)
            return {{.op = Opcode::sync_directory, .path = input_.target.parent}};
        return {{.op = Opcode::sync_directory, .path = attempt_directory_},
                {.op = Opcode::sync_directory, .path = input_.target.path}};
    case Phase::done: break;
    }
    return {};
}

void MetadataCommit::advance(std::span<const Completion> completions) {
    if (phase_ == Phase::open)
        for (std::size_t i = 0; i < records_.size(); ++i)
            if (!completions[i].error)
                records_[i].file = static_cast<int>(completions[i].result);
    if (phase_ == Phase::close)
        for (Record& record : records_)
            record.file = -1;
    if (error())
        return;
    if (phase_ == Phase::publish && completions[0].error) {
        target_appeared_ = true;
        phase_ = Phase::done;
        return;
    }
    published_ = phase_ == Phase::publish || published_;
    committed_ = phase_ == Phase::sync_publish; // the last step
    phase_ = static_cast<Phase>(static_cast<int>(phase_) + 1);
}

bool MetadataCommit::tolerated(const Request& request, const Completion& completion) const {
    // A reader that opened the target since has finished the switch, with syncs of its own, and removed what
    // was left of the attempt.
    if (phase_ == Phase::sync_publish && input_.target_present &&
        request.path == attempt_directory_ &&
        failed_with(completion, std::errc::no_such_file_or_directory))
        return true;
    return request.op == Opcode::rename && !input_.target_present && is_not_empty(completion);
}

void MetadataCommit::close_files(const std::function<void(int)>& close) {
    for (Record& record : records_)
        if (record.file >= 0)
            close(std::exchange(record.file, -1));
}

std::vector<Request> MetadataCommit::release() {
    std::vector<Request> batch;
    for (const Record& record : records_)
        if (record.file >= 0)
            batch.push_back({.op = Opcode::close, .file = record.file});
    return batch;
}

Result<void> drive(Reactor& reactor, StepMachine& machine) {
    auto done = or_out_of_memory([&]() -> Result<void> {
        for (auto batch = machine.next(); !batch.empty(); batch = machine.next())
            machine.complete(reactor.wait_all(std::move(batch)));
        if (machine.error())
            return std::unexpected(*machine.error());
        return {};
    });
    if (!done)
        machine.close_files([&reactor](int file) { reactor.close(file); });
    return done;
}

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

} // namespace

Result<std::optional<RedoRecord>> read_redo_record(Reactor& reactor, const std::string& directory) {
    auto found = find_switch(reactor, directory);
    if (!found)
        return std::unexpected(std::move(found.error()));
    return std::move(found->record);
}

namespace {

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
        if (removed.error && !is_not_empty(removed) &&
            !failed_with(removed, std::errc::no_such_file_or_directory))
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

Result<void> run_switch(Reactor& reactor, const TargetPath& target, const RedoRecord& record,
                        std::vector<std::string>& notes) {
    RedoSwitch move(target, record, RedoSwitch::Part::move_in);
    if (auto moved = drive(reactor, move); !moved)
        return moved;
    // Somebody else may have finished it meanwhile, and saved again: then there is nothing to clean up.
    auto current = read_redo_record(reactor, target.path);
    if (!current)
        return std::unexpected(std::move(current.error()));
    if (!*current || **current != record)
        return {};
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
                                  "there; bring it beside the checkpoint, or remove the directory "
                                  "{} to go back to what the checkpoint held before",
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
