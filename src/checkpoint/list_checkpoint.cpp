#include "checkpoint/stored_checkpoint.hpp"

#include <algorithm>
#include <set>

#include <fmt/format.h>

#include "checkpoint/finish_switch.hpp"
#include "checkpoint/strict_json.hpp"

namespace safering::checkpoint {

namespace {

// Not found, whatever else an Error may say.
class Listing {
  public:
    Listing(Reactor& reactor, const std::string& path, bool strict, std::vector<Error>* findings)
        : reactor_(reactor), target_(make_target_path(path, LastLink::keep)), strict_(strict),
          findings_(findings) {}

    Result<FileList> run() {
        auto status = perform(reactor_, {.op = Opcode::stat, .path = target_.path});
        if (!status && is_absent(status.error()))
            return std::unexpected(Error{.code = Errc::checkpoint_not_found,
                                         .operation = "open checkpoint",
                                         .file = target_.path,
                                         .detail = "no such file or directory"});
        if (!status)
            return std::unexpected(std::move(status.error()));
        if (status->status.kind != FileKind::directory) {
            list_.source = CheckpointSource::single_file;
            list_.files.emplace_back(target_.name, target_.path);
            return std::move(list_);
        }
        target_ = make_target_path(target_.path, LastLink::follow);
        if (auto done = settle_switch(); !done)
            return std::unexpected(std::move(done.error()));
        auto entries = perform(reactor_, {.op = Opcode::list, .path = target_.path});
        if (!entries)
            return std::unexpected(std::move(entries.error()));
        for (const DirectoryEntry& entry : entries->entries)
            names_.insert(entry.name);
        for (const std::string& name : in_attempt_)
            names_.insert(name);
        // Without either manifest, which of the files are the new checkpoint's could not be told.
        if (!list_.redo_attempt.empty() && !names_.contains(std::string(manifest_name)))
            return std::unexpected(attempt_is_gone());
        auto found = names_.contains(std::string(manifest_name)) ? by_manifest()
                     : names_.contains(std::string(index_name))  ? by_index()
                                                                 : by_name();
        if (!found)
            return std::unexpected(std::move(found.error()));
        return std::move(list_);
    }

  private:
    // Somebody who may only read, or has a full disk, takes each file from where it is.
    Result<void> settle_switch() {
        auto finished = finish_switch(reactor_, target_);
        if (finished)
            return {};
        auto record = read_redo_record(reactor_, target_.path);
        if (!record)
            return std::unexpected(std::move(record.error()));
        if (!*record)
            return {}; // finished by somebody else meanwhile
        list_.redo_attempt = (*record)->attempt;
        attempt_directory_ = join(target_.parent, (*record)->directory);
        auto left = still_to_move(reactor_, target_.parent, **record);
        if (!left)
            return std::unexpected(std::move(left.error()));
        in_attempt_.insert(left->begin(), left->end());
        list_.notes.push_back(
            "a finished save has not been switched in completely; its files were read "
            "where they are: " +
            finished.error().message());
        return {};
    }

    std::string path_of(const std::string& name) const {
        return join(in_attempt_.contains(name) ? attempt_directory_ : target_.path, name);
    }
    OpenMode mode() const { return strict_ ? OpenMode::read_strict : OpenMode::read; }
    Result<std::string> read_record(std::string_view name) {
        return read_small_file(reactor_, path_of(std::string(name)), mode(), record_limit_bytes);
    }
    Error attempt_is_gone() const {
        return {.code = Errc::checkpoint_conflict,
                .operation = "open checkpoint",
                .file = target_.path,
                .detail = fmt::format("{} speaks of a save whose files are neither here nor in {}",
                                      redo_name, attempt_directory_)};
    }
    Result<void> add(const std::string& name, std::string_view listed_in) {
        if (names_.contains(name)) {
            list_.files.emplace_back(name, path_of(name));
            return {};
        }
        list_.missing = true;
        return report(findings_, {.code = Errc::checkpoint_file_missing,
                                  .operation = "open checkpoint",
                                  .file = path_of(name),
                                  .detail = fmt::format("{} lists it", listed_in)});
    }

    Result<void> by_manifest() {
        list_.source = CheckpointSource::manifest;
        const std::string path = path_of(std::string(manifest_name));
        auto text = read_record(manifest_name);
        if (text)
            list_.manifest_digest = digest_of(*text);
        auto manifest = text ? parse_manifest(*text, path)
                             : Result<Manifest>(std::unexpected(std::move(text.error())));
        if (!manifest) {
            // Whoever collects findings wants to see the rest, by the next best list.
            if (auto reported = report(findings_, std::move(manifest.error())); !reported)
                return reported;
            return names_.contains(std::string(index_name)) ? by_index() : by_name();
        }
        if (!list_.redo_attempt.empty() && manifest->attempt != list_.redo_attempt)
            return std::unexpected(attempt_is_gone());
        for (const ManifestFile& file : manifest->files)
            if (auto added = add(file.name, manifest_name); !added)
                return added;
        if (manifest->index)
            if (auto checked = check_index(*manifest->index); !checked)
                return checked;
        list_.manifest = std::move(*manifest);
        return {};
    }

    // Our load does not need the index, but other readers go by it: a changed one is damage.
    Result<void> check_index(const ManifestIndex& expected) {
        auto text = read_record(index_name);
        if (!text && !is_absent(text.error()))
            return report(findings_, std::move(text.error()));
        Error error{
            .code = {}, .operation = "read index", .file = path_of(std::string(index_name))};
        if (!text) {
            error.code = Errc::checkpoint_file_missing;
            error.detail = fmt::format("{} lists it", manifest_name);
            return report(findings_, std::move(error));
        }
        if (text->size() == expected.file_bytes && digest_of(*text) == expected.digest)
            return {};
        error.code = Errc::checkpoint_digest_mismatch;
        error.detail = fmt::format("{} has the digest of another content", manifest_name);
        return report(findings_, std::move(error));
    }

    Result<void> by_index() {
        list_.source = CheckpointSource::index;
        auto text = read_record(index_name);
        auto weight_map = text ? parse_index(*text, path_of(std::string(index_name)))
                               : Result<WeightMap>(std::unexpected(std::move(text.error())));
        if (!weight_map) {
            if (auto reported = report(findings_, std::move(weight_map.error())); !reported)
                return reported;
            return by_name();
        }
        std::set<std::string> files;
        for (const auto& [fqn, file] : *weight_map)
            files.insert(file);
        for (const std::string& file : files)
            if (auto added = add(file, index_name); !added)
                return added;
        list_.weight_map = std::move(*weight_map);
        return {};
    }

    Result<void> by_name() {
        list_.source = CheckpointSource::directory;
        for (const std::string& name : names_)
            if (is_safe_file_name(name) && !name.starts_with('.'))
                list_.files.emplace_back(name, path_of(name));
        if (!list_.files.empty() || (findings_ != nullptr && !findings_->empty()))
            return {};
        return std::unexpected(Error{
            .code = Errc::checkpoint_not_found,
            .operation = "open checkpoint",
            .file = target_.path,
            .detail =
                fmt::format("it holds no {}, no {} and no *.safetensors; a save that was cut off "
                            "before its commit leaves none",
                            manifest_name, index_name)});
    }

    Reactor& reactor_;
    TargetPath target_;
    bool strict_;
    std::vector<Error>* findings_;
    FileList list_;
    std::set<std::string> names_;
    std::set<std::string> in_attempt_;
    std::string attempt_directory_;
};

} // namespace

bool is_current(Reactor& reactor, const std::string& path, const FileList& list) {
    if (list.source == CheckpointSource::single_file)
        return true;
    const TargetPath target = make_target_path(path);
    const auto redo = read_redo_record(reactor, target.path);
    if (!redo || (*redo ? (*redo)->attempt : std::string()) != list.redo_attempt)
        return false;
    if (*redo)
        return true; // each file is the new checkpoint's, wherever it was found
    const auto text = read_small_file(reactor, join(target.path, std::string(manifest_name)),
                                      OpenMode::read, record_limit_bytes);
    return (text ? std::optional(digest_of(*text)) : std::nullopt) == list.manifest_digest;
}

Result<FileList> list_checkpoint(Reactor& reactor, const std::string& path, bool strict,
                                 std::vector<Error>* findings) {
    return Listing(reactor, path, strict, findings).run();
}

} // namespace safering::checkpoint
