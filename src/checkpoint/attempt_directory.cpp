#include "checkpoint/attempt_directory.hpp"

#include <algorithm>
#include <functional>
#include <future>
#include <iterator>
#include <optional>
#include <set>
#include <utility>

#include <fmt/format.h>
#include <unistd.h>

#include "checkpoint/finish_switch.hpp"
#include "checkpoint/perform.hpp"
#include "checkpoint/removal.hpp"
#include "checkpoint/step_name.hpp"
#include "out_of_memory.hpp"

namespace safering::checkpoint {

namespace {

// Files under way at a time: bounds descriptors, and is plenty to keep a journal busy.
constexpr std::size_t files_at_once = 64;

} // namespace

// Writes the heads, then fsyncs them, on the reactor's thread; kept alive by its own requests.
struct HeadsUnderWay::Writing : std::enable_shared_from_this<Writing> {
    Writing(Reactor& on, std::vector<plan::LayoutFile> given)
        : reactor(on), files(std::move(given)) {}

    Result<void> begin(const std::string& directory) {
        std::vector<Request> opens;
        for (const plan::LayoutFile& file : files) {
            paths.push_back(join(directory, file.file.name));
            opens.push_back({.op = Opcode::open, .mode = OpenMode::create, .path = paths.back()});
        }
        auto made = open_all(reactor, std::move(opens));
        if (!made)
            return std::unexpected(std::move(made.error()));
        opened = std::move(*made);
        // Full size first: a full disk shows now and not at 90 %, and writes into allocated extents do not
        // take the inode lock exclusively.
        auto allocated = perform_all(reactor, requests([&](std::size_t i) {
                                         return Request{.op = Opcode::allocate,
                                                        .length = files[i].file.file_bytes};
                                     }));
        if (!allocated)
            return std::unexpected(std::move(allocated.error()));
        submit(requests([&](std::size_t i) {
                   std::string& head = files[i].head;
                   return Request{.op = Opcode::write,
                                  .data = reinterpret_cast<std::byte*>(head.data()),
                                  .length = head.size()};
               }),
               [self = shared_from_this()] { self->sync(); });
        return {};
    }

    void sync() {
        const bool begun = !error && had_memory([this] {
            submit(requests([](std::size_t) { return Request{.op = Opcode::fsync}; }),
                   [self = shared_from_this()] { self->ended.set_value(); });
        });
        if (begun)
            return;
        if (!error)
            error = out_of_memory();
        ended.set_value();
    }

    std::vector<Request> requests(auto&& make) const {
        std::vector<Request> requests;
        for (std::size_t i = 0; i < files.size(); ++i) {
            requests.push_back(make(i));
            requests.back().file = opened[i].descriptor();
            requests.back().path = paths[i];
        }
        return requests;
    }

    void submit(std::vector<Request> requests, std::function<void()> then) {
        left = requests.size();
        std::vector<Reactor::Submission> batch;
        for (Request& request : requests) {
            const Request shown{.op = request.op,
                                .length = request.length,
                                .offset = request.offset,
                                .path = request.path};
            batch.push_back({std::move(request), [this, shown, then](const Completion& completion) {
                                 if (completion.error && !error)
                                     error = to_error(shown, completion);
                                 if (--left == 0)
                                     then();
                             }});
        }
        reactor.submit(batch);
    }

    Reactor& reactor;
    std::vector<plan::LayoutFile> files;
    std::vector<std::string> paths;
    std::vector<OpenFile> opened;
    std::size_t left = 0; // of the batch under way
    std::optional<Error> error;
    std::promise<void> ended;
    const pid_t process = ::getpid();
};

HeadsUnderWay::HeadsUnderWay(std::shared_ptr<Writing> writing) : writing_(std::move(writing)) {}

Result<void> HeadsUnderWay::wait() {
    const auto writing = std::exchange(writing_, nullptr);
    if (!writing)
        return {};
    if (::getpid() != writing->process) // nobody is there to end it
        return fail(Errc::io_forked, "write the heads of files");
    writing->ended.get_future().wait();
    writing->opened.clear();
    if (writing->error)
        return std::unexpected(std::move(*writing->error));
    return {};
}

Result<HeadsUnderWay> create_attempt_directory(Reactor& reactor, const std::string& directory,
                                               std::vector<plan::LayoutFile> files) {
    auto made = perform(reactor, {.op = Opcode::make_directory, .path = directory});
    if (!made)
        return std::unexpected(std::move(made.error()));
    HeadsUnderWay heads;
    for (std::size_t first = 0; first < files.size(); first += files_at_once) {
        const auto begin =
            std::make_move_iterator(files.begin() + static_cast<std::ptrdiff_t>(first));
        const std::size_t count = std::min(files_at_once, files.size() - first);
        auto writing = std::make_shared<HeadsUnderWay::Writing>(
            reactor, std::vector(begin, begin + static_cast<std::ptrdiff_t>(count)));
        auto created = heads.wait();
        if (created)
            created = or_out_of_memory([&] { return writing->begin(directory); });
        if (!created) {
            // The first error is the one to report. What might be left carries the attempt's name and is
            // cleaned away by the next save that succeeds.
            (void)or_out_of_memory([&] { return remove_attempt_directory(reactor, directory); });
            return std::unexpected(std::move(created.error()));
        }
        heads = HeadsUnderWay(std::move(writing));
    }
    return heads;
}

Result<void> remove_attempt_directory(Reactor& reactor, const std::string& directory) {
    const auto listed = perform(reactor, {.op = Opcode::list, .path = directory});
    if (!listed && is_absent(listed.error()))
        return {};
    if (!listed)
        return std::unexpected(listed.error());
    for (const DirectoryEntry& entry : listed->entries) {
        const std::string path = join(directory, entry.name);
        const bool is_redo = entry.name == redo_name || entry.name == revoked_name;
        if (is_redo && entry.kind == FileKind::directory) {
            if (auto removed = remove_tree(reactor, path); !removed)
                return removed;
            continue;
        }
        if (!is_redo && !is_safe_file_name(entry.name) && entry.name != manifest_name &&
            entry.name != index_name)
            continue;
        const auto unlinked = perform(reactor, {.op = Opcode::unlink, .path = path});
        if (!unlinked && !is_absent(unlinked.error()))
            return std::unexpected(unlinked.error());
    }
    const auto removed = perform(reactor, {.op = Opcode::remove_directory, .path = directory});
    if (!removed && !is_absent(removed.error()))
        return std::unexpected(removed.error());
    return {};
}

namespace {

// Takes the right to commit into a target that exists, for good. A commit makes the directory A/redo, once, and moves it
// into the target, as a directory. Where it is not there, a file in its place keeps it from being made: by an attempt
// that has not come so far, while for one that has committed it means nothing. Where it is, it gets another name. Two who
// do so at once do not undo each other's work: the slash lets nothing but a directory be renamed.
Result<void> revoke(Reactor& reactor, const std::string& directory) {
    const std::string redo = join(directory, std::string(redo_name));
    const Request mark{.op = Opcode::open, .mode = OpenMode::create, .path = redo};
    const Completion made = reactor.wait(mark);
    if (!made.error) {
        const OpenFile closed(reactor, made);
        return {};
    }
    if (is_absent(made))
        return {};
    if (made.error != std::errc::file_exists)
        return std::unexpected(to_error(mark, made));
    const Request taking{.op = Opcode::rename,
                         .path = redo + "/",
                         .new_path = join(directory, std::string(revoked_name))};
    Completion taken = reactor.wait(taking);
    if (taken.error == std::errc::file_exists) {
        // By a clean-up that came no further. It is said before what `redo` is: that may be a file since.
        if (auto removed = remove_tree(reactor, taking.new_path); !removed)
            return removed;
        taken = reactor.wait(taking);
    }
    if (taken.error && !is_absent(taken) && taken.error != std::errc::not_a_directory)
        return std::unexpected(to_error(taking, taken));
    return {};
}

// Other directories may be anything, and belong to anybody. But what could only not be looked at may need its attempt.
bool is_obstacle(const Error& error) {
    return could_not_look(error) && error.code != std::errc::permission_denied;
}

// Adds directories of attempts that redo records speak of. Any directory may be what an attempt is switched into: the
// target may have been renamed since. The directories that were looked into.
Result<std::set<std::string>> add_switching(Reactor& reactor, const std::string& parent,
                                            const std::set<std::string>& targets,
                                            std::set<std::string>& switching) {
    auto listed = perform(reactor, {.op = Opcode::list, .path = parent});
    if (!listed)
        return std::unexpected(std::move(listed.error()));
    std::set<std::string> directories;
    for (const DirectoryEntry& entry : listed->entries) {
        // What was committed before it was revoked lies in a target. Attempts come and go all the time.
        if (entry.kind != FileKind::directory || parse_hidden_name(entry.name, attempt_suffix))
            continue;
        directories.insert(entry.name);
        auto redo = read_redo_record(reactor, join(parent, entry.name));
        if (redo && *redo)
            switching.insert((*redo)->directory);
        else if (!redo && (targets.contains(entry.name) || is_obstacle(redo.error())))
            return std::unexpected(std::move(redo.error()));
    }
    return directories;
}

// All that there are. While a removal has a target under another name, and when it gives it back, a record may be found
// under neither: so it is looked for until two looks in a row found the same directories.
Result<std::set<std::string>> switching_attempts(Reactor& reactor, const std::string& parent,
                                                 const std::set<std::string>& targets) {
    constexpr int tries = 100;
    std::set<std::string> switching, before;
    for (int i = 0; i < tries; ++i) {
        auto directories = add_switching(reactor, parent, targets, switching);
        if (!directories)
            return std::unexpected(std::move(directories.error()));
        if (i != 0 && *directories == before)
            return switching;
        before = std::move(*directories);
    }
    return std::unexpected(Error{.code = Errc::checkpoint_conflict,
                                 .operation = "remove an attempt",
                                 .file = parent,
                                 .detail =
                                     "directories come and go there all the time, and any may "
                                     "need it; it stays"});
}

} // namespace

RevokedAttempts remove_attempts(Reactor& reactor, const std::string& parent,
                                std::vector<std::string> names) {
    RevokedAttempts out;
    std::set<std::string> targets;
    std::erase_if(names, [&](const std::string& name) {
        auto revoked = revoke(reactor, join(parent, name));
        if (!revoked)
            out.failures.push_back(std::move(revoked.error()));
        return !revoked;
    });
    if (names.empty())
        return out;
    for (const std::string& name : names)
        targets.insert(parse_hidden_name(name, attempt_suffix).value().target);
    // Not before: what had not been committed when it was revoked never will be.
    auto switching = switching_attempts(reactor, parent, targets);
    if (!switching) {
        out.failures.push_back(std::move(switching.error()));
        return out;
    }
    for (std::string& name : names) {
        if (switching->contains(name)) {
            out.switching.push_back(std::move(name));
            continue;
        }
        const HiddenName parsed = parse_hidden_name(name, attempt_suffix).value();
        const std::string path =
            join(parent, attempt_directory_name(parsed.target, renamed_attempt_id(parsed.id)));
        const Request rename{.op = Opcode::rename, .path = join(parent, name), .new_path = path};
        const Completion renamed = reactor.wait(rename);
        if (is_absent(renamed))
            continue; // it became the target, which had been absent; or somebody else removes it
        auto removed = renamed.error ? std::unexpected(to_error(rename, renamed))
                                     : remove_attempt_directory(reactor, path);
        if (removed)
            out.removed.push_back(std::move(name));
        else
            out.failures.push_back(std::move(removed.error()));
    }
    return out;
}

std::vector<std::string> remove_attempts_up_to(Reactor& reactor, const TargetPath& target,
                                               const std::string& attempt) {
    const auto listed = perform(reactor, {.op = Opcode::list, .path = target.parent});
    if (!listed)
        return {"attempts that are left were not looked for: " + listed.error().message()};
    std::vector<std::string> done;
    for (const DirectoryEntry& entry : listed->entries) {
        const auto other = parse_attempt_directory_name(entry.name, target.name);
        if (other && *other <= attempt && entry.kind == FileKind::directory)
            done.push_back(entry.name);
    }
    std::vector<std::string> notes;
    for (const Error& error : remove_attempts(reactor, target.parent, std::move(done)).failures)
        notes.push_back("an attempt that is left was not removed: " + error.message());
    return notes;
}

} // namespace safering::checkpoint
