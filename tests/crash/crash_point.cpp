#include "crash_point.hpp"

#include <algorithm>

#include <fmt/format.h>
#include <xxhash.h>

#include <safering/byte_range.hpp>

namespace safering::test {

namespace {

constexpr std::uint64_t sector = SimulatedDisk::sector_bytes;
constexpr std::uint64_t most_pieces = 200;

bool changes_bytes(Opcode op) {
    return op == Opcode::write || op == Opcode::allocate || op == Opcode::truncate;
}

} // namespace

std::uint64_t hash_of_bytes(std::span<const std::byte> bytes) {
    return mix(XXH3_64bits(bytes.data(), bytes.size()), bytes.size());
}

Replay::Replay(Recording given)
    : recording(std::move(given)), base_names(recording.base, names, kinds),
      changes(recording.log.size()) {
    for (std::size_t i = 0; i < recording.log.size(); ++i) {
        const SimulatedDisk::Record& record = recording.log[i];
        if (kinds.size() <= record.inode)
            kinds.resize(record.inode + 1, FileKind::other);
        if (!is_name_operation(record.op))
            continue;
        if (kinds[record.inode] == FileKind::other)
            kinds[record.inode] =
                record.op == Opcode::make_directory ? FileKind::directory : FileKind::regular;
        changes[i] = {record.op,
                      record.inode,
                      record.directory,
                      record.new_directory,
                      names.number(record.name),
                      names.number(record.new_name)};
    }
}

CrashPoint::CrashPoint(Replay& replay, std::size_t records)
    : replay_(replay), records_(records),
      durable_(durable_records(std::span(replay.recording.log).first(records))),
      settled_(replay.base_names), content_(replay.kinds.size()) {
    std::unordered_map<Inode, std::uint64_t> sizes;
    for (std::size_t i = 0; i < records; ++i) {
        const SimulatedDisk::Record& record = replay.recording.log[i];
        if (is_name_operation(record.op)) {
            if (!durable_[i])
                names_.push_back(i);
            if (names_.empty()) {
                settled_.apply(replay.changes[i]);
                settled_to_ = i + 1;
            }
        } else if (changes_bytes(record.op)) {
            std::uint64_t& size = sizes[record.inode];
            if (!durable_[i])
                add_pieces(i, size);
            size = std::max(size, record.offset + record.length);
        }
    }
    SAFERING_ASSERT(names_.size() < 64);
    for (Inode inode = 1; inode < replay.kinds.size(); ++inode)
        if (replay.kinds[inode] == FileKind::regular)
            content_[inode] = hash_of(inode, {}, nullptr);
}

void CrashPoint::add_pieces(std::size_t index, std::uint64_t size_before) {
    const SimulatedDisk::Record& record = replay_.recording.log[index];
    auto file = std::ranges::find(files_, record.inode, &File::inode);
    if (file == files_.end())
        file = files_.insert(file, File{record.inode, {}});
    const std::uint64_t end = record.offset + record.length;
    if (record.op != Opcode::write) {
        file->pieces.push_back({index, record.offset, end, false});
        return;
    }
    // What would not fit the mask is kept or lost as a whole.
    const bool fits = file->pieces.size() + record.length / sector + 3 < most_pieces;
    for (std::uint64_t at = record.offset; at < end;) {
        const std::uint64_t next = fits ? std::min(end, round_down(at, sector) + sector) : end;
        file->pieces.push_back({index, at, next, true});
        at = next;
    }
    // The size may reach the disk without the bytes: they read as zeros then.
    if (end > size_before)
        file->pieces.push_back({index, record.offset, end, false});
    SAFERING_ASSERT(file->pieces.size() < Mask().size());
}

unsigned CrashPoint::bits() const {
    unsigned bits = name_bits();
    for (const File& file : files_)
        bits += static_cast<unsigned>(file.pieces.size());
    return bits;
}

NameTree CrashPoint::names_of(std::uint64_t kept) const {
    NameTree tree = settled_;
    std::size_t bit = 0;
    for (std::size_t i = settled_to_; i < records_; ++i) {
        if (!is_name_operation(replay_.recording.log[i].op))
            continue;
        const bool apply = durable_[i] || (kept >> bit & 1) != 0;
        bit += durable_[i] ? 0 : 1;
        if (apply)
            tree.apply(replay_.changes[i]);
    }
    return tree;
}

// What of one record's bytes is there. In the order of the log, since later records lie over earlier ones.
void CrashPoint::apply_content(SimulatedTree& tree, std::size_t index, const Mask& kept,
                               const File* file) const {
    const SimulatedDisk::Record& record = replay_.recording.log[index];
    if (durable_[index]) {
        tree.apply(record);
        return;
    }
    if (file == nullptr)
        return;
    for (std::size_t bit = 0; bit < file->pieces.size(); ++bit) {
        const Piece& piece = file->pieces[bit];
        if (piece.record != index || !kept[bit])
            continue;
        SimulatedDisk::Record part{.op = record.op,
                                   .inode = record.inode,
                                   .offset = piece.begin,
                                   .length = piece.end - piece.begin};
        if (piece.bytes) {
            const std::byte* from = record.data.data() + (piece.begin - record.offset);
            part.data.assign(from, from + part.length);
        } else if (record.op == Opcode::write) {
            part.op = Opcode::allocate;
        } else {
            part = record;
        }
        tree.apply(part);
    }
}

std::uint64_t CrashPoint::hash_of(Inode inode, const Mask& kept, const File* file) const {
    SimulatedTree tree;
    if (const SimulatedInode* base = replay_.recording.base.inode(inode);
        base != nullptr && !base->data.empty())
        tree.apply(
            {.op = Opcode::write, .inode = inode, .length = base->data.size(), .data = base->data});
    for (std::size_t i = 0; i < records_; ++i) {
        const SimulatedDisk::Record& record = replay_.recording.log[i];
        if (record.inode == inode && changes_bytes(record.op))
            apply_content(tree, i, kept, file);
    }
    const SimulatedInode* found = tree.inode(inode);
    return found == nullptr ? hash_of_bytes({}) : hash_of_bytes(found->data);
}

void CrashPoint::set_content(std::size_t index, const Mask& kept,
                             std::vector<std::uint64_t>& content) {
    File& file = files_[index];
    const auto [found, inserted] = file.hashes.try_emplace(kept);
    if (inserted)
        found->second = hash_of(file.inode, kept, &file);
    content[file.inode] = found->second;
}

CrashPoint::State CrashPoint::state(const Choice& choice) {
    State state{names_of(choice.names), content_};
    for (std::size_t f = 0; f < files_.size(); ++f)
        set_content(f, choice.files[f], state.content);
    return state;
}

SimulatedTree CrashPoint::materialise(const Choice& choice) const {
    SimulatedTree tree = replay_.recording.base;
    std::size_t bit = 0;
    for (std::size_t i = 0; i < records_; ++i) {
        const SimulatedDisk::Record& record = replay_.recording.log[i];
        if (is_name_operation(record.op)) {
            const bool apply = durable_[i] || (choice.names >> bit & 1) != 0;
            bit += durable_[i] ? 0 : 1;
            if (apply)
                tree.apply(record);
            else
                tree.lose_name(record);
        } else if (changes_bytes(record.op)) {
            const auto file = std::ranges::find(files_, record.inode, &File::inode);
            const auto at = static_cast<std::size_t>(file - files_.begin());
            apply_content(tree, i, at < files_.size() ? choice.files[at] : Mask(),
                          at < files_.size() ? &*file : nullptr);
        }
    }
    return tree;
}

std::string CrashPoint::describe(const Choice& choice) const {
    std::string out = fmt::format("after {} operations", records_);
    if (records_ > 0) {
        const auto& last = replay_.recording.log[records_ - 1];
        out += fmt::format(" (the last: {} {})", name(last.op), last.path);
    }
    for (std::size_t bit = 0; bit < names_.size(); ++bit) {
        const auto& record = replay_.recording.log[names_[bit]];
        out += fmt::format("\n  {} {} {}", (choice.names >> bit & 1) != 0 ? "kept" : "lost",
                           name(record.op), record.path);
    }
    for (std::size_t f = 0; f < files_.size(); ++f)
        for (std::size_t bit = 0; bit < files_[f].pieces.size(); ++bit) {
            const Piece& piece = files_[f].pieces[bit];
            const auto& record = replay_.recording.log[piece.record];
            out += fmt::format("\n  {} {}{} {}-{} of {}", choice.files[f][bit] ? "kept" : "lost",
                               name(record.op), piece.bytes ? "" : " (size)", piece.begin,
                               piece.end, record.path);
        }
    return out;
}

StateHash::StateHash(const NameTree& names, const std::vector<FileKind>& kinds) {
    add(names, kinds, NameTree::root, 1);
}

void StateHash::add(const NameTree& names, const std::vector<FileKind>& kinds, Inode directory,
                    std::uint64_t path) {
    for (const NameTree::Entry& entry : names.entries()) {
        if (entry.directory != directory)
            continue;
        const std::uint64_t below = mix(path, entry.name);
        if (kinds[entry.inode] == FileKind::directory) {
            names_ += below;
            add(names, kinds, entry.inode, below);
        } else {
            files_.emplace_back(below, entry.inode);
        }
    }
}

std::uint64_t StateHash::value(const std::vector<std::uint64_t>& content) const {
    std::uint64_t hash = names_;
    for (const auto& [path, inode] : files_)
        hash += mix(path, content[inode]);
    return hash;
}

} // namespace safering::test
