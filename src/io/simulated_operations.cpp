#include "io/simulated_operations.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>

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

std::uint64_t cut_short(std::uint64_t length, Shortening shortening, bool direct) {
    std::uint64_t moved = length;
    switch (shortening) {
    case Shortening::none: break;
    case Shortening::one: moved = 1; break;
    case Shortening::half: moved = (length + 1) / 2; break;
    case Shortening::all_but_one: moved = std::max<std::uint64_t>(length, 2) - 1; break;
    }
    constexpr std::uint64_t sector = SimulatedDisk::sector_bytes;
    return direct ? std::max(moved / sector * sector, std::min(sector, length)) : moved;
}

} // namespace

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

std::optional<Fault> SimulatedDisk::State::fault(const Operation& operation) {
    const Request& request = operation.request;
    std::optional<Fault> hit;
    for (Armed& armed : faults) {
        const Fault& fault = armed.fault;
        if (fault.op && *fault.op != request.op)
            continue;
        if (!path_of(request).contains(fault.path_contains) &&
            !request.new_path.contains(fault.path_contains))
            continue;
        const std::uint64_t index = armed.seen++;
        if (!hit && index >= fault.after && index - fault.after < fault.times)
            hit = fault;
    }
    if (hit)
        hits.push_back({request.op, path_of(request), request.new_path});
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

void SimulatedDisk::State::transfer(Operation& operation, const OpenFile& file,
                                    const std::optional<Fault>& hit) {
    Completion& completion = operation.completion;
    const bool writing = operation.request.op == Opcode::write;
    if (writing && !file.writable)
        completion.error = code_of(EBADF);
    else if (now.inode(file.inode)->kind == FileKind::directory)
        completion.error = code_of(EISDIR);
    else if (file.direct && !is_aligned(operation))
        completion.error = code_of(EINVAL);
    if (completion.error || (hit && hit->shortening == Shortening::none))
        return;
    std::uint64_t moved = hit ? cut_short(operation.length, hit->shortening, file.direct)
                              : shortened(operation.length, file.direct);
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
    if (!error && request.op == Opcode::rename && request.path.ends_with('/') &&
        now.inode(place.inode)->kind != FileKind::directory)
        error = code_of(ENOTDIR);
    if (!error)
        record(std::move(entry), error);
}

void SimulatedDisk::State::carry_out(Operation& operation) {
    const Request& request = operation.request;
    Completion& completion = operation.completion;
    const auto found = files.find(request.file);
    const OpenFile* file = found == files.end() ? nullptr : &found->second;
    const std::optional<Fault> hit = fault(operation);
    if (hit && hit->shortening == Shortening::none && hit->error != 0) {
        completion.error = code_of(hit->error);
        if (request.op == Opcode::fsync && file != nullptr)
            log.push_back(
                {.op = request.op, .failed = true, .inode = file->inode, .path = file->path});
        // Linux closes the descriptor whatever close() says.
        if (request.op == Opcode::close && file != nullptr)
            files.erase(found);
        return;
    }
    switch (request.op) {
    case Opcode::open: return open(operation);
    case Opcode::rename:
    case Opcode::unlink:
    case Opcode::make_directory:
    case Opcode::remove_directory: return change_name(operation);
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
    default: break;
    }
    if (file == nullptr) {
        completion.error = code_of(EBADF);
        return;
    }
    switch (request.op) {
    case Opcode::close: files.erase(found); return;
    case Opcode::fsync:
        log.push_back({.op = request.op, .inode = file->inode, .path = file->path});
        return;
    case Opcode::allocate:
    case Opcode::truncate: return change_size(operation, *file);
    default: return transfer(operation, *file, hit);
    }
}

} // namespace safering
