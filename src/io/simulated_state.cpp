#include "io/simulated_state.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include <safering/byte_range.hpp>

namespace safering {

namespace {

constexpr SimulatedDisk::InodeNumber root = 1;
// As Linux does.
constexpr int most_links = 40;

std::vector<std::string> components(std::string_view path) {
    std::vector<std::string> parts;
    while (!path.empty()) {
        const std::size_t slash = std::min(path.find('/'), path.size());
        if (slash != 0 && path.substr(0, slash) != ".")
            parts.emplace_back(path.substr(0, slash));
        path.remove_prefix(std::min(slash + 1, path.size()));
    }
    return parts;
}

/// Decides the fate of what is not durable.
class Chance {
  public:
    Chance(CrashPolicy policy, std::size_t records) : policy_(policy), random_(policy.seed) {
        // Even odds would hardly ever keep, or lose, nearly everything, where most bugs are.
        constexpr std::array percents{5u, 50u, 95u};
        percent_ = percents[random_() % percents.size()];
        cut_ = random_() % (records + 1);
    }
    bool keeps_name(std::size_t index) {
        return policy_.kind == CrashPolicy::Kind::random_prefix ? index < cut_ : keeps();
    }
    bool keeps() {
        switch (policy_.kind) {
        case CrashPolicy::Kind::drop_unsynced: return false;
        case CrashPolicy::Kind::keep_all: return true;
        default: return random_() % 100 < percent_;
        }
    }
    std::uint64_t piece_bytes() const {
        return policy_.kind == CrashPolicy::Kind::random_torn ? SimulatedDisk::sector_bytes : 4096;
    }

  private:
    CrashPolicy policy_;
    std::mt19937_64 random_;
    unsigned percent_ = 0;
    std::size_t cut_ = 0;
};

void apply_partly(SimulatedTree& tree, const SimulatedDisk::Record& record, Chance& chance) {
    const std::uint64_t unit = chance.piece_bytes();
    const std::uint64_t end = record.offset + record.length;
    for (std::uint64_t at = record.offset; at < end;) {
        const std::uint64_t next = std::min(end, round_down(at, unit) + unit);
        if (chance.keeps()) {
            SimulatedDisk::Record piece{
                .op = Opcode::write, .inode = record.inode, .offset = at, .length = next - at};
            const std::byte* from = record.data.data() + (at - record.offset);
            piece.data.assign(from, from + piece.length);
            tree.apply(piece);
        }
        at = next;
    }
    // The size may reach the disk without the bytes: they read as zeros then.
    if (chance.keeps())
        tree.apply({.op = Opcode::allocate,
                    .inode = record.inode,
                    .offset = record.offset,
                    .length = record.length});
}

} // namespace

bool is_name_operation(Opcode op) {
    return op == Opcode::open || op == Opcode::rename || op == Opcode::unlink ||
           op == Opcode::make_directory || op == Opcode::remove_directory;
}

std::vector<bool> durable_records(std::span<const SimulatedDisk::Record> log) {
    std::vector<bool> durable(log.size());
    // Backwards, so that these hold what came after a record, the nearest fsync winning.
    std::map<SimulatedDisk::InodeNumber, bool> synced_files;
    std::map<SimulatedDisk::InodeNumber, bool> synced_directories;
    for (std::size_t i = log.size(); i-- > 0;) {
        const SimulatedDisk::Record& record = log[i];
        if (record.op == Opcode::fsync)
            synced_files[record.inode] = !record.failed;
        else if (record.op == Opcode::sync_directory)
            synced_directories[record.inode] = true;
        else if (is_name_operation(record.op))
            durable[i] =
                synced_directories.contains(record.directory) &&
                (record.new_directory == 0 || synced_directories.contains(record.new_directory));
        else if (const auto found = synced_files.find(record.inode); found != synced_files.end())
            durable[i] = found->second;
    }
    return durable;
}

SimulatedTree after_crash(const SimulatedTree& base, std::span<const SimulatedDisk::Record> log,
                          CrashPolicy policy) {
    SimulatedTree tree = base;
    const std::vector<bool> durable = durable_records(log);
    Chance chance(policy, log.size());
    for (std::size_t i = 0; i < log.size(); ++i) {
        const SimulatedDisk::Record& record = log[i];
        if (durable[i])
            tree.apply(record);
        else if (record.op == Opcode::write)
            apply_partly(tree, record, chance);
        else if (is_name_operation(record.op) ? chance.keeps_name(i) : chance.keeps())
            tree.apply(record);
        else
            tree.lose_name(record);
    }
    return tree;
}

void put(SimulatedTree& base, SimulatedTree& now, std::string_view path, SimulatedInode made) {
    std::vector<std::string> parts = components(path);
    SAFERING_ASSERT(!parts.empty());
    SimulatedDisk::InodeNumber directory = root;
    for (std::size_t i = 0; i < parts.size(); ++i) {
        const bool last = i + 1 == parts.size();
        const auto& entries = now.inode(directory)->entries;
        const auto found = entries.find(parts[i]);
        const bool exists = found != entries.end();
        if (exists && (!last || made.kind == FileKind::directory)) {
            directory = found->second;
            continue;
        }
        const SimulatedDisk::InodeNumber number = now.new_number();
        const SimulatedInode inode = last ? made : SimulatedInode{.kind = FileKind::directory};
        base.add(directory, parts[i], number, inode);
        now.add(directory, parts[i], number, inode);
        directory = number;
    }
}

SimulatedTree::SimulatedTree() : last_number_(root) {
    inodes_[root].kind = FileKind::directory;
}

int SimulatedTree::find(std::string_view path, bool follow, Place& place) const {
    int links = 0;
    std::vector<std::string> left = components(path);
    std::reverse(left.begin(), left.end());
    // The directories on the way, for "..".
    std::vector<InodeNumber> way{root};
    place = {.directory = root, .name = "", .inode = root};
    while (!left.empty()) {
        const std::string part = std::move(left.back());
        left.pop_back();
        if (part == "..") {
            if (way.size() > 1)
                way.pop_back();
            place = {.directory = way.back(), .name = "", .inode = way.back()};
            continue;
        }
        const SimulatedInode& directory = inodes_.at(way.back());
        const auto found = directory.entries.find(part);
        const InodeNumber number = found == directory.entries.end() ? 0 : found->second;
        place = {.directory = way.back(), .name = part, .inode = number};
        if (number == 0)
            return left.empty() ? 0 : ENOENT;
        const SimulatedInode& child = inodes_.at(number);
        if (child.kind == FileKind::symlink && (follow || !left.empty())) {
            if (++links > most_links)
                return ELOOP;
            std::vector<std::string> more = components(child.target);
            left.insert(left.end(), more.rbegin(), more.rend());
            if (child.target.starts_with('/'))
                way.assign(1, root);
        } else if (child.kind == FileKind::directory) {
            way.push_back(number);
        } else if (!left.empty()) {
            return ENOTDIR;
        }
    }
    return 0;
}

const SimulatedInode* SimulatedTree::inode(InodeNumber number) const {
    const auto found = inodes_.find(number);
    return found == inodes_.end() ? nullptr : &found->second;
}

FileStatus SimulatedTree::status(InodeNumber number) const {
    const SimulatedInode& found = inodes_.at(number);
    return {.kind = found.kind, .size = found.data.size(), .device = 1, .inode = number};
}

std::vector<DirectoryEntry> SimulatedTree::list(InodeNumber directory) const {
    std::vector<DirectoryEntry> entries;
    for (const auto& [name, number] : inodes_.at(directory).entries)
        entries.push_back({name, inodes_.at(number).kind});
    return entries;
}

std::vector<std::string> SimulatedTree::names(InodeNumber directory, bool recursive) const {
    std::vector<std::string> names;
    for (const auto& [name, number] : inodes_.at(directory).entries) {
        if (!recursive || inodes_.at(number).kind != FileKind::directory) {
            names.push_back(name);
            continue;
        }
        for (const std::string& below : this->names(number, true))
            names.push_back(name + "/" + below);
    }
    return names;
}

void SimulatedTree::add(InodeNumber directory, const std::string& name, InodeNumber number,
                        SimulatedInode made) {
    inodes_[number] = std::move(made);
    last_number_ = std::max(last_number_, number);
    set_name(directory, name, number);
}

int SimulatedTree::check(const Record& record) const {
    const SimulatedInode* subject = inode(record.inode);
    switch (record.op) {
    case Opcode::unlink:
        if (subject == nullptr)
            return ENOENT;
        return subject->kind == FileKind::directory ? EISDIR : 0;
    case Opcode::remove_directory:
        if (subject == nullptr)
            return ENOENT;
        if (subject->kind != FileKind::directory)
            return ENOTDIR;
        return subject->entries.empty() ? 0 : ENOTEMPTY;
    case Opcode::rename: {
        if (subject == nullptr)
            return ENOENT;
        if (record.new_directory == record.inode)
            return EINVAL;
        const auto& entries = inodes_.at(record.new_directory).entries;
        const auto found = entries.find(record.new_name);
        if (found == entries.end() || found->second == record.inode)
            return 0;
        const SimulatedInode& target = inodes_.at(found->second);
        if (subject->kind == FileKind::directory && target.kind != FileKind::directory)
            return ENOTDIR;
        if (subject->kind != FileKind::directory && target.kind == FileKind::directory)
            return EISDIR;
        return target.entries.empty() ? 0 : ENOTEMPTY;
    }
    default: return 0;
    }
}

SimulatedInode& SimulatedTree::file(InodeNumber number) {
    last_number_ = std::max(last_number_, number);
    return inodes_[number];
}

void SimulatedTree::set_name(InodeNumber directory, const std::string& name, InodeNumber number) {
    SimulatedInode& parent = file(directory);
    // A directory whose own creation was lost is there all the same, out of reach.
    parent.kind = FileKind::directory;
    parent.entries[name] = number;
}

void SimulatedTree::lose_name(const Record& record) {
    if (record.op == Opcode::open)
        file(record.inode).kind = FileKind::regular;
    else if (record.op == Opcode::make_directory)
        file(record.inode).kind = FileKind::directory;
}

int SimulatedTree::apply(const Record& record) {
    const auto forget_name = [&] {
        auto& entries = file(record.directory).entries;
        const auto found = entries.find(record.name);
        if (found != entries.end() && found->second == record.inode)
            entries.erase(found);
    };
    switch (record.op) {
    case Opcode::open:
        file(record.inode).kind = FileKind::regular;
        set_name(record.directory, record.name, record.inode);
        break;
    case Opcode::make_directory:
        file(record.inode).kind = FileKind::directory;
        set_name(record.directory, record.name, record.inode);
        break;
    case Opcode::unlink:
    case Opcode::remove_directory: forget_name(); break;
    case Opcode::rename:
        file(record.inode);
        forget_name();
        set_name(record.new_directory, record.new_name, record.inode);
        break;
    case Opcode::truncate: file(record.inode).data.resize(record.length); break;
    case Opcode::allocate:
    case Opcode::write: {
        std::vector<std::byte>& bytes = file(record.inode).data;
        // A wild offset in a test should be the error a full disk gives, not
        // the end of the process.
        constexpr std::uint64_t disk_bytes = std::uint64_t{1} << 32;
        if (record.offset > disk_bytes || record.length > disk_bytes - record.offset)
            return ENOSPC;
        bytes.resize(std::max<std::uint64_t>(bytes.size(), record.offset + record.length));
        if (!record.data.empty())
            std::memcpy(bytes.data() + record.offset, record.data.data(), record.data.size());
        break;
    }
    default: break;
    }
    return 0;
}

} // namespace safering
