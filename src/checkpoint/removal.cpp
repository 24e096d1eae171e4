#include "checkpoint/removal.hpp"

#include <algorithm>
#include <set>

#include <fmt/format.h>

#include "checkpoint/finish_switch.hpp"
#include "checkpoint/manifest.hpp"
#include "checkpoint/perform.hpp"
#include "checkpoint/step_name.hpp"

namespace safering::checkpoint {

namespace {

// Somebody else who removes the same at the same time has done it.
Result<void> perform_or_gone(Reactor& reactor, Request request) {
    const auto done = perform(reactor, std::move(request));
    if (!done && !is_absent(done.error()))
        return std::unexpected(done.error());
    return {};
}

Result<Manifest> read_manifest(Reactor& reactor, const std::string& directory) {
    const std::string path = join(directory, std::string(manifest_name));
    const auto text = read_small_file(reactor, path, OpenMode::read_strict, record_limit_bytes);
    if (!text)
        return std::unexpected(text.error());
    return parse_manifest(*text, path);
}

Result<void> unlink_but_manifest(Reactor& reactor, const std::string& path,
                                 const Manifest& manifest, RetentionPolicy::Others others) {
    std::set<std::string_view> own;
    for (const ManifestFile& file : manifest.files)
        own.insert(file.name);
    if (manifest.index)
        own.insert(index_name);
    auto listed = perform(reactor, {.op = Opcode::list, .path = path});
    if (!listed)
        return is_absent(listed.error()) ? Result<void>() : std::unexpected(listed.error());
    std::string foreign;
    for (const DirectoryEntry& entry : listed->entries) {
        const std::string inside = join(path, entry.name);
        if (entry.name == manifest_name)
            continue;
        const bool is_own = own.contains(entry.name) && entry.kind != FileKind::directory;
        if (!is_own && others == RetentionPolicy::Others::keep) {
            foreign = entry.name;
            continue;
        }
        const auto removed = entry.kind == FileKind::directory
                                 ? remove_tree(reactor, inside)
                                 : perform_or_gone(reactor, {.op = Opcode::unlink, .path = inside});
        if (!removed)
            return removed;
    }
    if (!foreign.empty())
        return std::unexpected(Error{
            .code = Errc::checkpoint_conflict,
            .operation = "remove checkpoint",
            .file = path,
            .detail = fmt::format("it holds {}, which its save did not write; move that away, or "
                                  "ask for others' files to be removed too",
                                  escaped(foreign))});
    return perform_or_gone(reactor, {.op = Opcode::sync_directory, .path = path});
}

// Whether a renamed directory holds another save than the one that was listed. One that holds none is being removed by
// somebody else, too: no save comes to a hidden name.
Result<bool> holds_another(Reactor& reactor, const std::string& path,
                           const StepCheckpoint& checkpoint) {
    const auto redo = read_redo_record(reactor, path);
    if (!redo)
        return std::unexpected(redo.error());
    const auto manifest = read_manifest(reactor, path);
    if (!manifest && !is_absent(manifest.error()))
        return std::unexpected(manifest.error());
    return *redo || (manifest && manifest->attempt != checkpoint.attempt);
}

Error saved_meanwhile(const std::string& path) {
    return {.code = Errc::checkpoint_conflict,
            .operation = "remove checkpoint",
            .file = path,
            .detail = "it was saved to meanwhile, and stays"};
}

// Whether everything is there that the save wrote: nothing of it has been removed.
Result<bool> is_whole(Reactor& reactor, const std::string& path, const Manifest& manifest) {
    auto listed = perform(reactor, {.op = Opcode::list, .path = path});
    if (!listed)
        return std::unexpected(std::move(listed.error()));
    std::set<std::string_view> there;
    for (const DirectoryEntry& entry : listed->entries)
        there.insert(entry.name);
    return (!manifest.index || there.contains(index_name)) &&
           std::ranges::all_of(manifest.files,
                               [&](const ManifestFile& file) { return there.contains(file.name); });
}

// What another save has come into meanwhile gets its name back, where that is free; a switch that was cut off there is
// finished.
Error put_back(Reactor& reactor, const std::string& path, const std::string& old_path,
               Error error) {
    const auto back = perform(reactor, {.op = Opcode::rename, .path = path, .new_path = old_path});
    if (!back && is_absent(back.error())) {
        error.detail += "; somebody else has given it back or removed it meanwhile";
        return error;
    }
    if (!back) {
        error.detail += fmt::format(" as {}: {}", escaped(path), back.error().message());
        return error;
    }
    if (const auto finished = finish_switch(reactor, make_target_path(old_path)); !finished)
        error.detail += fmt::format("; the switch of its last save is not finished: {}",
                                    finished.error().message());
    return error;
}

} // namespace

// Kinds are those of the names themselves, so a link is unlinked and not followed.
Result<void> remove_tree(Reactor& reactor, const std::string& directory) {
    auto listed = perform(reactor, {.op = Opcode::list, .path = directory});
    if (!listed)
        return is_absent(listed.error()) ? Result<void>() : std::unexpected(listed.error());
    for (const DirectoryEntry& entry : listed->entries) {
        const std::string path = join(directory, entry.name);
        const auto removed = entry.kind == FileKind::directory
                                 ? remove_tree(reactor, path)
                                 : perform_or_gone(reactor, {.op = Opcode::unlink, .path = path});
        if (!removed)
            return removed;
    }
    return perform_or_gone(reactor, {.op = Opcode::remove_directory, .path = directory});
}

Result<void> finish_removal(Reactor& reactor, const std::string& directory, const std::string& name,
                            RetentionPolicy::Others others) {
    const auto parsed = parse_hidden_name(name, removal_suffix);
    SAFERING_ASSERT(parsed);
    const std::string path = join(directory, name);
    auto redo = read_redo_record(reactor, path);
    if (!redo)
        return std::unexpected(std::move(redo.error()));
    const std::string old_path = join(directory, parsed->target);
    if (*redo)
        return std::unexpected(put_back(reactor, path, old_path, saved_meanwhile(old_path)));
    // No record: there is nothing to finish but what is left of a switch that was done.
    if (auto done = finish_switch(reactor, make_target_path(path)); !done)
        return std::unexpected(std::move(done.error()));
    auto manifest = read_manifest(reactor, path);
    if (manifest) {
        // A removal that was to be of an older save, and was cut off before it saw that.
        if (manifest->attempt != parsed->id) {
            auto whole = is_whole(reactor, path, *manifest);
            if (!whole)
                return std::unexpected(std::move(whole.error()));
            if (*whole)
                return std::unexpected(
                    put_back(reactor, path, old_path, saved_meanwhile(old_path)));
        }
        if (auto unlinked = unlink_but_manifest(reactor, path, *manifest, others); !unlinked)
            return unlinked;
        const std::string record = join(path, std::string(manifest_name));
        if (auto gone = perform_or_gone(reactor, {.op = Opcode::unlink, .path = record}); !gone)
            return gone;
    } else if (!is_absent(manifest.error())) {
        return std::unexpected(std::move(manifest.error()));
    }
    // Without a manifest only an empty directory is ours, and no other can be removed so.
    auto removed = perform_or_gone(reactor, {.op = Opcode::remove_directory, .path = path});
    if (!removed)
        return removed;
    const auto synced = perform(reactor, {.op = Opcode::sync_directory, .path = directory});
    return synced ? Result<void>() : std::unexpected(synced.error());
}

Result<void> remove_checkpoint(Reactor& reactor, const std::string& directory,
                               const StepCheckpoint& checkpoint, RetentionPolicy::Others others) {
    const std::string name = hidden_name(checkpoint.name, checkpoint.attempt, removal_suffix);
    const std::string path = join(directory, name);
    const auto renamed =
        perform(reactor, {.op = Opcode::rename, .path = checkpoint.path, .new_path = path});
    if (!renamed)
        return std::unexpected(renamed.error());
    auto other = holds_another(reactor, path, checkpoint);
    if (!other) {
        // Not back: somebody else may have looked, and be removing its files.
        other.error().detail += fmt::format("; the checkpoint is {} until it can be looked into: "
                                            "the next prune, or recover, removes it, or gives it "
                                            "back where it was saved to meanwhile",
                                            escaped(name));
        return std::unexpected(std::move(other.error()));
    }
    if (*other)
        return std::unexpected(
            put_back(reactor, path, checkpoint.path, saved_meanwhile(checkpoint.path)));
    const auto synced = perform(reactor, {.op = Opcode::sync_directory, .path = directory});
    if (!synced)
        return std::unexpected(synced.error());
    return finish_removal(reactor, directory, name, others);
}

} // namespace safering::checkpoint
