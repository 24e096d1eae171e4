// What a power cut may leave at one point of a log: every choice of what is not durable there, as bits. A name
// operation is kept or lost; of a write, each sector of 512 bytes is (so each block of 4096 is kept, lost, or
// torn), and the size may be there without the bytes.
#pragma once

#include <bitset>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "io/simulated_state.hpp"
#include "name_tree.hpp"

namespace safering::test {

/// The operations of a run and what was on the disk before them.
struct Recording {
    SimulatedTree base;
    std::vector<SimulatedDisk::Record> log;
};

/// A recording, prepared for many points.
class Replay {
  public:
    explicit Replay(Recording recording);
    Replay(const Replay&) = delete;
    Replay& operator=(const Replay&) = delete;

    const Recording recording;
    Names names;
    std::vector<FileKind> kinds;
    NameTree base_names;
    /// By record; meaningful for name operations.
    std::vector<NameChange> changes;
};

class CrashPoint {
  public:
    /// Which pieces of a file are kept.
    using Mask = std::bitset<256>;
    /// Which undurable things are kept: a bit each.
    struct Choice {
        std::uint64_t names = 0;
        std::vector<Mask> files;
    };
    /// A state as recovery sees it.
    struct State {
        NameTree names;
        /// By inode: a hash of its bytes.
        std::vector<std::uint64_t> content;
    };

    CrashPoint(Replay& replay, std::size_t records);

    std::size_t records() const { return records_; }
    unsigned name_bits() const { return static_cast<unsigned>(names_.size()); }
    std::size_t files() const { return files_.size(); }
    unsigned file_bits(std::size_t file) const {
        return static_cast<unsigned>(files_[file].pieces.size());
    }
    unsigned bits() const;

    NameTree names_of(std::uint64_t kept) const;
    /// The bytes of all files where nothing undurable is kept.
    const std::vector<std::uint64_t>& content() const { return content_; }
    /// Sets the hash of one file's bytes.
    void set_content(std::size_t file, const Mask& kept, std::vector<std::uint64_t>& content);
    State state(const Choice& choice);
    /// The same as a disk.
    SimulatedTree materialise(const Choice& choice) const;
    /// The choice in words, to find a state again.
    std::string describe(const Choice& choice) const;

    Replay& replay() const { return replay_; }

  private:
    struct Piece {
        std::size_t record;
        std::uint64_t begin;
        std::uint64_t end;
        bool bytes; ///< else only the size
    };
    struct File {
        Inode inode;
        std::vector<Piece> pieces;
        std::unordered_map<Mask, std::uint64_t> hashes{};
    };

    void add_pieces(std::size_t record, std::uint64_t size_before);
    void apply_content(SimulatedTree& tree, std::size_t record, const Mask& kept,
                       const File* file) const;
    std::uint64_t hash_of(Inode inode, const Mask& kept, const File* file) const;

    Replay& replay_;
    std::size_t records_;
    std::vector<bool> durable_;
    NameTree settled_; ///< after the durable names before the first that is not
    std::size_t settled_to_ = 0;
    std::vector<std::size_t> names_; ///< records
    std::vector<File> files_;
    std::vector<std::uint64_t> content_;
};

/// A hash of everything that can be reached by a path.
class StateHash {
  public:
    StateHash(const NameTree& names, const std::vector<FileKind>& kinds);
    std::uint64_t value(const std::vector<std::uint64_t>& content) const;

  private:
    void add(const NameTree& names, const std::vector<FileKind>& kinds, Inode directory,
             std::uint64_t path);

    std::uint64_t names_ = 0;
    std::vector<std::pair<std::uint64_t, Inode>> files_;
};

std::uint64_t hash_of_bytes(std::span<const std::byte> bytes);

} // namespace safering::test
