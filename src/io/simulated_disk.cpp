// The disk as its reactors see it: descriptors, faults, short transfers, and the log that a crash
// replays.
#include "io/simulated_disk.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "io/simulated_state.hpp"

namespace safering {

namespace {

std::error_code code_of(int error) {
    return {error, std::system_category()};
}

bool is_aligned(const Operation& operation) {
    constexpr std::uint64_t mask = SimulatedDisk::sector_bytes - 1;
    return ((reinterpret_cast<std::uintptr_t>(operation.data) | operation.length |
             operation.offset) &
            mask) == 0;
}

} // namespace

struct SimulatedDisk::State {
    struct OpenFile {
        InodeNumber inode;
        bool direct;
        bool writable;
        std::string path;
    };
    struct Armed {
        Fault fault;
        std::uint64_t seen = 0;
    };

    /// The disk as it was, all of it durable, when the log was empty; and as it is.
    SimulatedTree base;
    SimulatedTree now;
    std::vector<Record> log;
    std::uint64_t operations = 0;
    // Far from the numbers of real descriptors, which must not be confused with these.
    int next_file = 1'000'000;
    std::map<int, OpenFile> files;

    std::vector<Armed> faults;
    std::optional<std::mt19937_64> shorten;
    std::optional<std::mt19937_64> shuffle;
    bool direct = true;
    bool held = false;
    std::map<std::uint64_t, Backend::Wake> wakes;
    std::uint64_t next_wake = 0;

    /// The errno of the fault that hits this operation; 0: moves nothing; empty: none.
    std::optional<int> fault(const Operation& operation);
    void carry_out(Operation& operation);
    void open(Operation& operation);
    void transfer(Operation& operation, const OpenFile& file, bool nothing);
    void change_size(Operation& operation, const OpenFile& file);
    void change_name(Operation& operation);
    std::uint64_t shortened(std::uint64_t length, bool direct_file);
    std::string path_of(const Request& request) const;
    void record(Record entry, std::error_code& error);
};

// A record is applied to the tree here and, after a crash, in crash_after(): by the same function.
void SimulatedDisk::State::record(Record entry, std::error_code& error) {
    if (!entry.failed)
        error = code_of(now.apply(entry));
    if (!error || entry.failed)
        log.push_back(std::move(entry));
}

std::string SimulatedDisk::State::path_of(const Request& request) const {
    if (!request.path.empty())
        return request.path;
    const auto found = files.find(request.file);
    return found == files.end() ? std::string{} : found->second.path;
}

std::optional<int> SimulatedDisk::State::fault(const Operation& operation) {
    const Request& request = operation.request;
    std::optional<int> hit;
    for (Armed& armed : faults) {
        const Fault& fault = armed.fault;
        if (fault.op && *fault.op != request.op)
            continue;
        if (!path_of(request).contains(fault.path_contains) &&
            !request.new_path.contains(fault.path_contains))
            continue;
        const std::uint64_t index = armed.seen++;
        if (!hit && index >= fault.after && index - fault.after < fault.times)
            hit = fault.error;
    }
    return hit;
}

std::uint64_t SimulatedDisk::State::shortened(std::uint64_t length, bool direct_file) {
    if (!shorten || length == 0)
        return length;
    // Half of them whole, so that tests end.
    if ((*shorten)() % 2 == 0)
        return length;
    const std::uint64_t moved = (*shorten)() % (length + 1);
    return direct_file ? moved / sector_bytes * sector_bytes : moved;
}

void SimulatedDisk::State::open(Operation& operation) {
    const Request& request = operation.request;
    Completion& completion = operation.completion;
    const bool follow = request.mode == OpenMode::read;
    SimulatedTree::Place place;
    if (const int error = now.find(request.path, follow, place); error != 0) {
        completion.error = code_of(error);
        return;
    }
    if (request.mode == OpenMode::create) {
        if (place.inode != 0) {
            completion.error = code_of(EEXIST);
            return;
        }
        place.inode = now.new_number();
        record({.op = Opcode::open,
                .inode = place.inode,
                .directory = place.directory,
                .name = place.name,
                .path = request.path},
               completion.error);
    }
    const SimulatedInode* inode = now.inode(place.inode);
    const bool writable = request.mode == OpenMode::update || request.mode == OpenMode::create;
    if (inode == nullptr)
        completion.error = code_of(ENOENT);
    else if (inode->kind == FileKind::symlink)
        completion.error = code_of(ELOOP);
    else if (inode->kind == FileKind::directory && writable)
        completion.error = code_of(EISDIR);
    if (completion.error)
        return;
    completion.direct =
        request.caching == Caching::direct && direct && inode->kind == FileKind::regular;
    completion.status = now.status(place.inode);
    completion.result = static_cast<std::uint64_t>(next_file);
    files[next_file++] = {place.inode, completion.direct, writable, request.path};
}

void SimulatedDisk::State::transfer(Operation& operation, const OpenFile& file, bool nothing) {
    Completion& completion = operation.completion;
    const bool writing = operation.request.op == Opcode::write;
    if (writing && !file.writable)
        completion.error = code_of(EBADF);
    else if (now.inode(file.inode)->kind == FileKind::directory)
        completion.error = code_of(EISDIR);
    else if (file.direct && !is_aligned(operation))
        completion.error = code_of(EINVAL);
    if (completion.error || nothing)
        return;
    std::uint64_t moved = shortened(operation.length, file.direct);
    if (!writing) {
        const std::vector<std::byte>& bytes = now.inode(file.inode)->data;
        moved = operation.offset >= bytes.size()
                    ? 0
                    : std::min<std::uint64_t>(moved, bytes.size() - operation.offset);
        // A read shortened to nothing would be the end of the file.
        if (moved == 0 && operation.offset < bytes.size())
            moved = std::min<std::uint64_t>(operation.length, bytes.size() - operation.offset);
        if (moved != 0)
            std::memcpy(operation.data, bytes.data() + operation.offset, moved);
    } else if (moved != 0) {
        record({.op = Opcode::write,
                .inode = file.inode,
                .offset = operation.offset,
                .length = moved,
                .data = {operation.data, operation.data + moved},
                .path = file.path},
               completion.error);
    }
    completion.result = moved;
}

void SimulatedDisk::State::change_size(Operation& operation, const OpenFile& file) {
    if (!file.writable) {
        operation.completion.error =
            code_of(operation.request.op == Opcode::truncate ? EINVAL : EBADF);
        return;
    }
    record({.op = operation.request.op,
            .inode = file.inode,
            .offset = operation.offset,
            .length = operation.length,
            .path = file.path},
           operation.completion.error);
}

void SimulatedDisk::State::change_name(Operation& operation) {
    const Request& request = operation.request;
    std::error_code& error = operation.completion.error;
    SimulatedTree::Place place, target;
    if (const int found = now.find(request.path, false, place); found != 0) {
        error = code_of(found);
        return;
    }
    Record entry{.op = request.op,
                 .inode = place.inode,
                 .directory = place.directory,
                 .name = place.name,
                 .path = request.path};
    if (request.op == Opcode::rename) {
        if (const int found = now.find(request.new_path, false, target); found != 0) {
            error = code_of(found);
            return;
        }
        entry.new_directory = target.directory;
        entry.new_name = target.name;
        entry.path += " -> " + request.new_path;
        if (place.inode != 0 && target.inode != 0 && !request.replace)
            error = code_of(EEXIST);
    } else if (request.op == Opcode::make_directory) {
        if (place.inode != 0)
            error = code_of(EEXIST);
        entry.inode = now.new_number();
    }
    if (!error)
        error = code_of(now.check(entry));
    if (!error)
        record(std::move(entry), error);
}

void SimulatedDisk::State::carry_out(Operation& operation) {
    const Request& request = operation.request;
    Completion& completion = operation.completion;
    const auto found = files.find(request.file);
    const OpenFile* file = found == files.end() ? nullptr : &found->second;
    const std::optional<int> hit = fault(operation);
    if (hit && *hit != 0) {
        completion.error = code_of(*hit);
        if (request.op == Opcode::fsync && file != nullptr)
            log.push_back(
                {.op = request.op, .failed = true, .inode = file->inode, .path = file->path});
        // Linux closes the descriptor whatever close() says.
        if (request.op == Opcode::close && file != nullptr)
            files.erase(found);
        return;
    }
    switch (request.op) {
    case Opcode::open:
        return open(operation);
    case Opcode::rename:
    case Opcode::unlink:
    case Opcode::make_directory:
    case Opcode::remove_directory:
        return change_name(operation);
    case Opcode::sync_directory:
    case Opcode::stat:
    case Opcode::list: {
        SimulatedTree::Place place;
        int error = now.find(request.path, true, place);
        if (error == 0 && place.inode == 0)
            error = ENOENT;
        if (error == 0 && request.op != Opcode::stat &&
            now.inode(place.inode)->kind != FileKind::directory)
            error = ENOTDIR;
        completion.error = code_of(error);
        if (error != 0)
            return;
        if (request.op == Opcode::stat)
            completion.status = now.status(place.inode);
        else if (request.op == Opcode::list)
            completion.entries = now.list(place.inode);
        else
            log.push_back({.op = request.op, .inode = place.inode, .path = request.path});
        return;
    }
    default:
        break;
    }
    if (file == nullptr) {
        completion.error = code_of(EBADF);
        return;
    }
    switch (request.op) {
    case Opcode::close:
        files.erase(found);
        return;
    case Opcode::fsync:
        log.push_back({.op = request.op, .inode = file->inode, .path = file->path});
        return;
    case Opcode::allocate:
    case Opcode::truncate:
        return change_size(operation, *file);
    default:
        return transfer(operation, *file, hit.has_value());
    }
}

SimulatedDisk::SimulatedDisk() : state_(std::make_unique<State>()) {}
SimulatedDisk::SimulatedDisk(std::unique_ptr<State> state) : state_(std::move(state)) {}
SimulatedDisk::~SimulatedDisk() = default;

std::shared_ptr<SimulatedDisk> SimulatedDisk::crash(CrashPolicy policy) const {
    return crash_after(log_size(), policy);
}

std::shared_ptr<SimulatedDisk> SimulatedDisk::crash_after(std::size_t records,
                                                          CrashPolicy policy) const {
    const std::lock_guard lock(mutex_);
    SAFERING_ASSERT(records <= state_->log.size());
    auto left = std::make_unique<State>();
    left->base = after_crash(state_->base, std::span(state_->log).first(records), policy);
    left->now = left->base;
    left->direct = state_->direct;
    return std::shared_ptr<SimulatedDisk>(new SimulatedDisk(std::move(left)));
}

std::vector<SimulatedDisk::Record> SimulatedDisk::log() const {
    const std::lock_guard lock(mutex_);
    return state_->log;
}
std::size_t SimulatedDisk::log_size() const {
    const std::lock_guard lock(mutex_);
    return state_->log.size();
}
std::uint64_t SimulatedDisk::operations() const {
    const std::lock_guard lock(mutex_);
    return state_->operations;
}

void SimulatedDisk::inject(Fault fault) {
    const std::lock_guard lock(mutex_);
    state_->faults.push_back({std::move(fault)});
}
void SimulatedDisk::clear_faults() {
    const std::lock_guard lock(mutex_);
    state_->faults.clear();
}
void SimulatedDisk::shorten_transfers(std::uint64_t seed) {
    const std::lock_guard lock(mutex_);
    state_->shorten.emplace(seed);
}
void SimulatedDisk::shuffle_completions(std::uint64_t seed) {
    const std::lock_guard lock(mutex_);
    state_->shuffle.emplace(seed);
}
void SimulatedDisk::refuse_direct() {
    const std::lock_guard lock(mutex_);
    state_->direct = false;
}
void SimulatedDisk::hold() {
    const std::lock_guard lock(mutex_);
    state_->held = true;
}
void SimulatedDisk::release() {
    const std::lock_guard lock(mutex_);
    state_->held = false;
    for (const auto& [id, wake] : state_->wakes)
        wake();
}

bool SimulatedDisk::exists(std::string_view path) const {
    const std::lock_guard lock(mutex_);
    SimulatedTree::Place place;
    return state_->now.find(path, true, place) == 0 && place.inode != 0;
}

std::vector<std::byte> SimulatedDisk::read_file(std::string_view path) const {
    const std::lock_guard lock(mutex_);
    SimulatedTree::Place place;
    SAFERING_ASSERT(state_->now.find(path, true, place) == 0 && place.inode != 0);
    return state_->now.inode(place.inode)->data;
}

std::string SimulatedDisk::read_text(std::string_view path) const {
    const std::vector<std::byte> bytes = read_file(path);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void SimulatedDisk::write_file(std::string_view path, std::span<const std::byte> bytes) {
    const std::lock_guard lock(mutex_);
    put(state_->base, state_->now, path,
        {.kind = FileKind::regular, .data = {bytes.begin(), bytes.end()}});
}
void SimulatedDisk::write_text(std::string_view path, std::string_view text) {
    write_file(path, std::as_bytes(std::span(text)));
}
void SimulatedDisk::make_directory(std::string_view path) {
    const std::lock_guard lock(mutex_);
    put(state_->base, state_->now, path, {.kind = FileKind::directory});
}
void SimulatedDisk::make_symlink(std::string_view path, std::string_view target) {
    const std::lock_guard lock(mutex_);
    put(state_->base, state_->now, path,
        {.kind = FileKind::symlink, .target = std::string(target)});
}

std::vector<std::string> SimulatedDisk::list(std::string_view path, bool recursive) const {
    const std::lock_guard lock(mutex_);
    SimulatedTree::Place place;
    SAFERING_ASSERT(state_->now.find(path, true, place) == 0 && place.inode != 0);
    return state_->now.names(place.inode, recursive);
}

std::size_t SimulatedDisk::open_files() const {
    const std::lock_guard lock(mutex_);
    return state_->files.size();
}

void SimulatedDisk::perform(Operation& operation) {
    const std::lock_guard lock(mutex_);
    ++state_->operations;
    operation.completion = {};
    state_->carry_out(operation);
}

bool SimulatedDisk::is_direct(int file) const {
    const std::lock_guard lock(mutex_);
    const auto found = state_->files.find(file);
    return found != state_->files.end() && found->second.direct;
}
bool SimulatedDisk::held() const {
    const std::lock_guard lock(mutex_);
    return state_->held;
}
bool SimulatedDisk::grants_direct() const {
    const std::lock_guard lock(mutex_);
    return state_->direct;
}
std::size_t SimulatedDisk::choose(std::size_t count) {
    const std::lock_guard lock(mutex_);
    return state_->shuffle ? (*state_->shuffle)() % count : 0;
}
std::uint64_t SimulatedDisk::add_wake(Backend::Wake wake) {
    const std::lock_guard lock(mutex_);
    state_->wakes.emplace(++state_->next_wake, std::move(wake));
    return state_->next_wake;
}
void SimulatedDisk::remove_wake(std::uint64_t id) {
    const std::lock_guard lock(mutex_);
    state_->wakes.erase(id);
}

} // namespace safering
