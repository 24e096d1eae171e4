// list_checkpoints: what stands in the directory of a run, by names, manifests and sizes. Changes nothing.
#include <safering/retention.hpp>

#include <algorithm>
#include <map>
#include <set>

#include <fmt/format.h>

#include "checkpoint/finish_switch.hpp"
#include "checkpoint/manifest.hpp"
#include "checkpoint/perform.hpp"
#include "checkpoint/step_name.hpp"

namespace safering {

using namespace checkpoint;

std::string_view name(CheckpointState state) {
    switch (state) {
    case CheckpointState::whole: return "whole";
    case CheckpointState::switching: return "switching";
    case CheckpointState::damaged: return "damaged";
    case CheckpointState::foreign: return "foreign";
    case CheckpointState::unreadable: return "unreadable";
    }
    return "unknown";
}

namespace {

using Entries = std::map<std::string, FileKind>;

Result<Entries> list_entries(Reactor& reactor, const std::string& directory) {
    auto listed = perform(reactor, {.op = Opcode::list, .path = directory});
    if (!listed)
        return std::unexpected(std::move(listed.error()));
    Entries entries;
    for (DirectoryEntry& entry : listed->entries)
        entries.emplace(std::move(entry.name), entry.kind);
    return entries;
}

// One checkpoint, looked at.
class Step {
  public:
    Step(Reactor& reactor, const std::string& directory, StepCheckpoint& out)
        : reactor_(reactor), directory_(directory), out_(out) {}

    /// Name of the attempt's directory that its files are still being moved in from; else empty.
    std::string look() {
        out_.state = CheckpointState::foreign;
        auto entries = list_entries(reactor_, out_.path);
        if (!entries)
            return give_up(entries.error());
        entries_ = std::move(*entries);
        auto redo = read_redo_record(reactor_, out_.path);
        if (!redo)
            return give_up(redo.error());
        redo_ = std::move(*redo);
        if (redo_)
            if (auto looked = look_at_attempt(); !looked)
                return give_up(looked.error());
        const std::string manifest(manifest_name);
        if (kind_of(manifest) != FileKind::regular) {
            out_.reason = fmt::format("it holds no {}", manifest_name);
            return {};
        }
        const auto text =
            read_small_file(reactor_, path_of(manifest), OpenMode::read_strict, record_limit_bytes);
        if (!text)
            return give_up(text.error());
        const auto parsed = parse_manifest(*text, path_of(manifest));
        if (!parsed)
            return give_up(parsed.error());
        compare(*parsed);
        return redo_ ? redo_->directory : std::string();
    }

  private:
    std::string give_up(const Error& error) {
        if (could_not_look(error))
            unreadable(error);
        else
            out_.reason = error.message();
        return redo_ ? redo_->directory : std::string();
    }

    Result<void> look_at_attempt() {
        attempt_directory_ = join(directory_, redo_->directory);
        auto entries = list_entries(reactor_, attempt_directory_);
        if (!entries)
            return is_absent(entries.error()) ? Result<void>()
                                              : std::unexpected(std::move(entries.error()));
        const std::set<std::string_view> to_move(redo_->move.begin(), redo_->move.end());
        for (const auto& [entry, kind] : *entries)
            if (to_move.contains(entry))
                still_to_move_.emplace(entry, kind);
        return {};
    }

    std::optional<FileKind> kind_of(const std::string& name) const {
        for (const Entries* entries : {&still_to_move_, &entries_})
            if (const auto found = entries->find(name); found != entries->end())
                return found->second;
        return std::nullopt;
    }
    std::string path_of(const std::string& name) const {
        return join(still_to_move_.contains(name) ? attempt_directory_ : out_.path, name);
    }

    void compare(const Manifest& manifest) {
        out_.attempt = manifest.attempt;
        out_.saved_ms = attempt_time_ms(manifest.attempt);
        out_.files = manifest.files.size();
        out_.state = redo_ ? CheckpointState::switching : CheckpointState::whole;
        if (redo_ && manifest.attempt != redo_->attempt)
            damaged(fmt::format("{} speaks of a save whose files are neither here nor in {}",
                                redo_name, escaped(redo_->directory)));
        std::vector<Request> requests;
        std::vector<std::uint64_t> sizes;
        std::set<std::string_view> own{manifest_name, redo_name};
        const auto expect = [&](const std::string& file, std::uint64_t size) {
            own.insert(file);
            if (!kind_of(file))
                return damaged(fmt::format("{} is missing", escaped(file)));
            requests.push_back({.op = Opcode::stat, .path = path_of(file)});
            sizes.push_back(size);
        };
        for (const ManifestFile& file : manifest.files) {
            expect(file.name, file.file_bytes);
            out_.bytes += file.file_bytes;
        }
        const std::string index(index_name);
        if (manifest.index)
            expect(index, manifest.index->file_bytes), own.insert(index_name);
        const auto completions = reactor_.wait_all(requests);
        for (std::size_t i = 0; i < completions.size(); ++i)
            if (completions[i].error)
                look_failed(to_error(requests[i], completions[i]));
            else if (completions[i].status.kind != FileKind::regular)
                damaged(fmt::format("{} is no regular file", escaped(requests[i].path)));
            else if (completions[i].status.size != sizes[i])
                damaged(fmt::format("{} has {} bytes, saved were {}", escaped(requests[i].path),
                                    completions[i].status.size, sizes[i]));
        for (const auto& [entry, kind] : entries_)
            if (!own.contains(entry) && !(redo_ && std::ranges::count(redo_->remove, entry) != 0))
                out_.others.push_back(entry);
    }

    void look_failed(const Error& error) {
        if (!could_not_look(error))
            damaged(error.message());
        else if (out_.state != CheckpointState::damaged)
            unreadable(error);
    }

    void unreadable(const Error& error) {
        out_.state = CheckpointState::unreadable;
        out_.error = error.code;
        out_.reason = error.message();
    }

    // The first reason is told.
    void damaged(std::string reason) {
        if (out_.state != CheckpointState::damaged)
            out_.reason = std::move(reason);
        out_.state = CheckpointState::damaged;
    }

    Reactor& reactor_;
    const std::string& directory_;
    StepCheckpoint& out_;
    Entries entries_;
    Entries still_to_move_;
    std::string attempt_directory_;
    std::optional<RedoRecord> redo_;
};

// The save that a target without a step's name holds.
std::string attempt_of(Reactor& reactor, const std::string& directory) {
    const std::string path = join(directory, std::string(manifest_name));
    const auto text = read_small_file(reactor, path, OpenMode::read_strict, record_limit_bytes);
    const auto manifest = text ? parse_manifest(*text, path) : std::unexpected(text.error());
    return manifest ? manifest->attempt : std::string();
}

class Survey {
  public:
    Survey(Reactor& reactor, const std::string& directory) : reactor_(reactor) {
        list_.directory = make_target_path(directory).path;
    }

    Result<CheckpointList> run() {
        auto entries = list_entries(reactor_, list_.directory);
        if (!entries)
            return std::unexpected(std::move(entries.error()));
        for (const auto& [entry, kind] : *entries)
            if (kind == FileKind::directory)
                add_step(entry);
        for (const auto& [entry, kind] : *entries)
            if (kind == FileKind::directory)
                add_leftover(entry);
        std::ranges::sort(list_.checkpoints, {}, [](const StepCheckpoint& checkpoint) {
            return std::tuple(checkpoint.prefix, checkpoint.step, checkpoint.name);
        });
        const std::string pointer(pointer_name);
        if (const auto found = entries->find(pointer);
            found != entries->end() && found->second == FileKind::regular)
            read_pointer(join(list_.directory, pointer));
        return std::move(list_);
    }

  private:
    void add_step(const std::string& entry) {
        const auto step = parse_step_name(entry);
        if (!step) {
            // Any directory may be what an attempt is switched into, whatever its name is; but for an attempt, whose
            // record has been committed nowhere.
            if (parse_hidden_name(entry, attempt_suffix))
                return;
            if (const auto redo = read_redo_record(reactor_, join(list_.directory, entry));
                redo && *redo)
                switching_.insert((*redo)->directory);
            return;
        }
        StepCheckpoint out{.name = entry,
                           .prefix = step->prefix,
                           .step = step->step,
                           .path = join(list_.directory, entry)};
        if (std::string from = Step(reactor_, list_.directory, out).look(); !from.empty())
            switching_.insert(std::move(from));
        attempts_.emplace(entry, out.attempt);
        list_.checkpoints.push_back(std::move(out));
    }

    void add_leftover(const std::string& entry) {
        const auto attempt = parse_hidden_name(entry, attempt_suffix);
        const auto removal = parse_hidden_name(entry, removal_suffix);
        if (!attempt && !removal)
            return;
        const HiddenName& parsed = attempt ? *attempt : *removal;
        Leftover out{.kind = removal                      ? Leftover::Kind::removal
                             : switching_.contains(entry) ? Leftover::Kind::switching
                                                          : Leftover::Kind::attempt,
                     .name = entry,
                     .path = join(list_.directory, entry),
                     .target = parsed.target,
                     .begun_ms = attempt_time_ms(parsed.id)};
        if (out.kind == Leftover::Kind::attempt) {
            const auto [found, added] = attempts_.try_emplace(parsed.target);
            if (added)
                found->second = attempt_of(reactor_, join(list_.directory, parsed.target));
            out.stale = !found->second.empty() && parsed.id <= found->second;
        }
        list_.leftovers.push_back(std::move(out));
    }

    void read_pointer(const std::string& path) {
        constexpr std::uint64_t longest = 256; // a name of NAME_MAX bytes and a line end
        if (const auto text = read_small_file(reactor_, path, OpenMode::read_strict, longest))
            list_.pointer = parse_pointer(*text);
    }

    Reactor& reactor_;
    CheckpointList list_;
    std::set<std::string> switching_;
    std::map<std::string, std::string> attempts_; // committed, by target
};

} // namespace

Result<CheckpointList> list_checkpoints(const std::string& directory, Reactor& reactor) {
    return Survey(reactor, directory).run();
}

} // namespace safering
