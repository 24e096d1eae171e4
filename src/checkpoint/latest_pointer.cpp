// set_latest: the file that names the newest checkpoint of its directory.
//
//   1 the checkpoint is looked at: it must be whole, so its commit is behind
//   2 create .latest.<id>.pointer, write, fsync
//   3 rename it over `latest`, fsync the directory
// A crash leaves the old file or the new one, and perhaps one of step 2, which nobody reads and the next call removes.
#include <safering/retention.hpp>

#include <algorithm>

#include <fmt/format.h>

#include "checkpoint/attempt.hpp"
#include "checkpoint/perform.hpp"
#include "checkpoint/retention.hpp"
#include "checkpoint/step_name.hpp"

namespace safering {

using namespace checkpoint;

namespace {

constexpr std::string_view pointer_suffix = "pointer";

Result<void> check_is_pointer(Reactor& reactor, const std::string& directory) {
    auto listed = perform(reactor, {.op = Opcode::list, .path = directory});
    if (!listed)
        return std::unexpected(std::move(listed.error()));
    const auto found = std::ranges::find(listed->entries, pointer_name, &DirectoryEntry::name);
    if (found == listed->entries.end())
        return {};
    const std::string path = join(directory, found->name);
    constexpr std::uint64_t longest = 256;
    const auto text = read_small_file(reactor, path, OpenMode::read_strict, longest);
    if (text && parse_pointer(*text))
        return {};
    return std::unexpected(Error{.code = Errc::checkpoint_conflict,
                                 .operation = "set latest",
                                 .file = path,
                                 .detail = "it is there and does not hold the name of a "
                                           "checkpoint, so it is not ours; move it away"});
}

Result<void> write_durably(Reactor& reactor, const std::string& path, std::string text) {
    auto opened = perform(reactor, {.op = Opcode::open, .mode = OpenMode::create, .path = path});
    if (!opened)
        return std::unexpected(std::move(opened.error()));
    const OpenFile file(reactor, *opened);
    auto written = perform(reactor, {.op = Opcode::write,
                                     .file = file.descriptor(),
                                     .data = reinterpret_cast<std::byte*>(text.data()),
                                     .length = text.size(),
                                     .path = path});
    if (!written)
        return std::unexpected(std::move(written.error()));
    auto synced = perform(reactor, {.op = Opcode::fsync, .file = file.descriptor(), .path = path});
    return synced ? Result<void>() : std::unexpected(std::move(synced.error()));
}

// What a crash left of earlier calls. Litter: whether it goes changes nothing.
void remove_unfinished(Reactor& reactor, const std::string& directory) {
    const auto listed = perform(reactor, {.op = Opcode::list, .path = directory});
    if (!listed)
        return;
    for (const DirectoryEntry& entry : listed->entries) {
        const auto parsed = parse_hidden_name(entry.name, pointer_suffix);
        if (parsed && parsed->target == pointer_name && entry.kind == FileKind::regular)
            (void)perform(reactor, {.op = Opcode::unlink, .path = join(directory, entry.name)});
    }
}

} // namespace

Result<void> set_latest(const std::string& checkpoint, Reactor& reactor) {
    const TargetPath target = make_target_path(checkpoint, LastLink::keep);
    auto list = list_checkpoints(target.parent, reactor);
    if (!list)
        return std::unexpected(std::move(list.error()));
    const auto found = std::ranges::find(list->checkpoints, target.name, &StepCheckpoint::name);
    if (found == list->checkpoints.end() || !is_loadable(*found))
        return std::unexpected(
            Error{.code = found == list->checkpoints.end() ? Errc::checkpoint_not_found
                          : found->error                   ? found->error
                                                           : Errc::checkpoint_incomplete,
                  .operation = "set latest",
                  .file = target.path,
                  .detail = found == list->checkpoints.end()
                                ? "expected a checkpoint's directory that is named like step-1000"
                                : found->reason});
    if (auto pointer = check_is_pointer(reactor, target.parent); !pointer)
        return pointer;
    remove_unfinished(reactor, target.parent);
    const std::string unfinished =
        join(target.parent, hidden_name(pointer_name, make_attempt_id(), pointer_suffix));
    auto written = write_durably(reactor, unfinished, target.name + "\n");
    if (!written) {
        (void)perform(reactor,
                      {.op = Opcode::unlink, .path = unfinished}); // the first error counts
        return written;
    }
    for (Request request : {Request{.op = Opcode::rename,
                                    .replace = true,
                                    .path = unfinished,
                                    .new_path = join(target.parent, std::string(pointer_name))},
                            Request{.op = Opcode::sync_directory, .path = target.parent}})
        if (auto done = perform(reactor, std::move(request)); !done)
            return std::unexpected(std::move(done.error()));
    return {};
}

} // namespace safering
