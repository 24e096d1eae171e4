#include "checkpoint/attempt_directory.hpp"

#include <algorithm>
#include <span>

#include <fmt/format.h>

#include "checkpoint/commit.hpp"
#include "checkpoint/perform.hpp"

namespace safering::checkpoint {

namespace {

// Files under way at a time: bounds descriptors, and is plenty to keep a journal busy.
constexpr std::size_t files_at_once = 64;

Result<void> create_files(Reactor& reactor, const std::string& directory,
                          std::span<const plan::LayoutFile> files) {
    const auto for_each = [&](auto&& make) {
        std::vector<Request> requests;
        for (std::size_t i = 0; i < files.size(); ++i) {
            requests.push_back(make(i));
            requests.back().path = join(directory, files[i].file.name);
        }
        return requests;
    };
    const auto opened = open_all(reactor, for_each([](std::size_t) {
                                     return Request{.op = Opcode::open, .mode = OpenMode::create};
                                 }));
    if (!opened)
        return std::unexpected(opened.error());
    // Full size first: a full disk shows now and not at 90 %, and writes into allocated extents do not
    // take the inode lock exclusively.
    const auto allocate = for_each([&](std::size_t i) {
        return Request{.op = Opcode::allocate,
                       .file = (*opened)[i].descriptor(),
                       .length = files[i].file.file_bytes};
    });
    const auto write = for_each([&](std::size_t i) {
        const std::string& head = files[i].head;
        return Request{.op = Opcode::write,
                       .file = (*opened)[i].descriptor(),
                       .data = reinterpret_cast<std::byte*>(const_cast<char*>(head.data())),
                       .length = head.size()};
    });
    const auto sync = for_each([&](std::size_t i) {
        return Request{.op = Opcode::fsync, .file = (*opened)[i].descriptor()};
    });
    for (const auto* requests : {&allocate, &write, &sync})
        if (auto done = perform_all(reactor, *requests); !done)
            return std::unexpected(std::move(done.error()));
    return {};
}

} // namespace

Result<void> create_attempt_directory(Reactor& reactor, const std::string& directory,
                                      const std::vector<plan::LayoutFile>& files) {
    auto made = perform(reactor, {.op = Opcode::make_directory, .path = directory});
    if (!made)
        return std::unexpected(std::move(made.error()));
    for (std::size_t first = 0; first < files.size(); first += files_at_once) {
        const auto some =
            std::span(files).subspan(first, std::min(files_at_once, files.size() - first));
        if (auto created = create_files(reactor, directory, some); !created) {
            // The first error is the one to report. What might be left carries the attempt's name and is
            // cleaned away by the next save that succeeds.
            (void)remove_attempt_directory(reactor, directory);
            return created;
        }
    }
    return {};
}

Result<void> remove_attempt_directory(Reactor& reactor, const std::string& directory) {
    const auto absent = [](const Error& error) {
        return error.code == std::errc::no_such_file_or_directory;
    };
    const auto listed = perform(reactor, {.op = Opcode::list, .path = directory});
    if (!listed && absent(listed.error()))
        return {};
    if (!listed)
        return std::unexpected(listed.error());
    for (const DirectoryEntry& entry : listed->entries) {
        if (!is_safe_file_name(entry.name) && entry.name != manifest_name &&
            entry.name != index_name && entry.name != redo_name)
            continue;
        const auto unlinked =
            perform(reactor, {.op = Opcode::unlink, .path = join(directory, entry.name)});
        if (!unlinked && !absent(unlinked.error()))
            return std::unexpected(unlinked.error());
    }
    const auto removed = perform(reactor, {.op = Opcode::remove_directory, .path = directory});
    if (!removed && !absent(removed.error()))
        return std::unexpected(removed.error());
    return {};
}

std::vector<std::string> remove_older_attempts(Reactor& reactor, const TargetPath& target,
                                               const std::string& attempt) {
    std::vector<std::string> notes;
    const auto listed = perform(reactor, {.op = Opcode::list, .path = target.parent});
    if (!listed)
        return {"older attempts were not looked for: " + listed.error().message()};
    // A switch that is not finished reads from its attempt's directory.
    const auto redo = read_redo_record(reactor, target.path);
    const std::string needed = redo && *redo ? (*redo)->directory : std::string();
    for (const DirectoryEntry& entry : listed->entries) {
        const auto other = parse_attempt_directory_name(entry.name, target.name);
        if (!other || *other >= attempt || entry.kind != FileKind::directory ||
            entry.name == needed)
            continue;
        if (auto removed = remove_attempt_directory(reactor, join(target.parent, entry.name));
            !removed)
            notes.push_back("an older attempt was not removed: " + removed.error().message());
    }
    return notes;
}

} // namespace safering::checkpoint
