#include "checkpoint/attempt_directory.hpp"

#include <algorithm>
#include <functional>
#include <future>
#include <iterator>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <unistd.h>

#include "checkpoint/commit.hpp"
#include "checkpoint/perform.hpp"

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
        if (error)
            return ended.set_value();
        submit(requests([](std::size_t) { return Request{.op = Opcode::fsync}; }),
               [self = shared_from_this()] { self->ended.set_value(); });
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
            created = writing->begin(directory);
        if (!created) {
            // The first error is the one to report. What might be left carries the attempt's name and is
            // cleaned away by the next save that succeeds.
            (void)remove_attempt_directory(reactor, directory);
            return std::unexpected(std::move(created.error()));
        }
        heads = HeadsUnderWay(std::move(writing));
    }
    return heads;
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
