#include "checkpoint/commit_part.hpp"

#include "checkpoint/finish_switch.hpp"
#include "checkpoint/manifest.hpp"
#include "checkpoint/perform.hpp"

namespace safering::checkpoint {

Result<void> check_part_target(Reactor& reactor, const TargetPath& target) {
    // One that is still being switched in is there, too.
    if (auto finished = finish_switch(reactor, target); !finished)
        return std::unexpected(std::move(finished.error()));
    for (const std::string_view name : {manifest_name, index_name}) {
        const std::string path = join(target.path, std::string(name));
        auto status = perform(reactor, {.op = Opcode::stat, .path = path});
        if (!status && is_absent(status.error()))
            continue;
        if (!status)
            return std::unexpected(std::move(status.error()));
        return std::unexpected(Error{
            .code = Errc::checkpoint_conflict,
            .operation = "prepare global plan",
            .file = path,
            .detail = "ranks that save without a coordinator cannot replace a whole checkpoint, "
                      "whose files readers would go on to read: save to another directory, or "
                      "remove this checkpoint first"});
    }
    return {};
}

Result<void> commit_part(Reactor& reactor, const TargetPath& target, const std::string& directory,
                         const std::vector<std::string>& files) {
    const auto step = [&](Request request) -> Result<void> {
        auto done = perform(reactor, std::move(request));
        if (!done)
            return std::unexpected(std::move(done.error()));
        return {};
    };
    if (auto synced = step({.op = Opcode::sync_directory, .path = directory}); !synced)
        return synced;
    auto made = step({.op = Opcode::make_directory, .path = target.path});
    if (!made && made.error().code != std::errc::file_exists)
        return made;
    if (auto synced = step({.op = Opcode::sync_directory, .path = target.parent}); !synced)
        return synced;
    if (auto checked = check_part_target(reactor, target); !checked)
        return checked;
    for (const std::string& file : files)
        if (auto renamed = step({.op = Opcode::rename,
                                 .replace = true,
                                 .path = join(directory, file),
                                 .new_path = join(target.path, file)});
            !renamed)
            return renamed;
    for (const std::string& path : {directory, target.path})
        if (auto synced = step({.op = Opcode::sync_directory, .path = path}); !synced)
            return synced;
    return {};
}

} // namespace safering::checkpoint
