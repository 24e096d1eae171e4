#include "checkpoint/commit.hpp"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

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
    // A way into the target that ends with this switch: a newer checkpoint's file of that name cannot be meant.
    const auto in_target = [&](const std::string& name) {
        return switch_directory + "/../../" + name;
    };
    switch (phase_) {
    case Phase::move: // one at a time: their order is a promise to readers that go by file names
        return {{.op = Opcode::rename,
                 .replace = true,
                 .path = join(attempt_directory_, record_.move[moved_]),
                 .new_path = in_target(record_.move[moved_])}};
    case Phase::sync_moved:
        return {{.op = Opcode::sync_directory, .path = attempt_directory_}, sync_target};
    case Phase::unlink_stale: {
        std::vector<Request> batch;
        for (const std::string& name : record_.remove)
            batch.push_back({.op = Opcode::unlink, .path = in_target(name)});
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
    return may_be_gone && is_absent(completion);
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
        request.path == attempt_directory_ && is_absent(completion))
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

} // namespace safering::checkpoint
