// The names of a disk without its bytes, small enough that a crash state costs a copy of a few dozen words.
// Does with name operations what SimulatedTree does; CrashStates.TheLightTreeIsTheDisk compares the two.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/simulated_state.hpp"

namespace safering::test {

using Inode = SimulatedDisk::InodeNumber;

/// Path components as numbers.
class Names {
  public:
    std::uint32_t number(std::string_view name);
    std::vector<std::uint32_t> path(std::string_view path);

  private:
    std::unordered_map<std::string, std::uint32_t> numbers_;
};

/// A name operation of a log.
struct NameChange {
    Opcode op = Opcode::open;
    Inode inode = 0;
    Inode directory = 0;
    Inode new_directory = 0;
    std::uint32_t name = 0;
    std::uint32_t new_name = 0;
};

class NameTree {
  public:
    struct Entry {
        Inode directory;
        std::uint32_t name;
        Inode inode;
    };
    static constexpr Inode root = 1;

    NameTree() = default;
    /// Takes the names of a tree, and the kinds of its inodes.
    NameTree(const SimulatedTree& tree, Names& names, std::vector<FileKind>& kinds);

    const std::vector<Entry>& entries() const { return entries_; }
    /// 0 where there is none.
    Inode find(Inode directory, std::uint32_t name) const;
    Inode find(const std::vector<std::uint32_t>& path) const;
    void apply(const NameChange& change);

  private:
    void add(const SimulatedTree& tree, Inode directory, Names& names,
             std::vector<FileKind>& kinds);
    void set(Inode directory, std::uint32_t name, Inode inode);
    void forget(const NameChange& change);

    std::vector<Entry> entries_;
};

/// A good mixture of two words.
inline std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
    std::uint64_t x = a ^ (b + 0x9E3779B97F4A7C15u + (a << 6) + (a >> 2));
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

} // namespace safering::test
