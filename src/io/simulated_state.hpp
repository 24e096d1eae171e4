// The names and bytes of a simulated disk as a plain value, and what a crash leaves of them. Pure:
// a tree and a log in, a tree out.
#pragma once

#include "io/simulated_disk.hpp"

namespace safering {

struct SimulatedInode {
    FileKind kind = FileKind::regular;
    std::vector<std::byte> data{};
    std::map<std::string, SimulatedDisk::InodeNumber> entries{}; ///< directories
    std::string target{};                                        ///< symlinks
};

class SimulatedTree {
  public:
    using InodeNumber = SimulatedDisk::InodeNumber;
    using Record = SimulatedDisk::Record;

    /// Where a path leads: `inode` is 0 where the last name does not exist.
    struct Place {
        InodeNumber directory = 0;
        std::string name{};
        InodeNumber inode = 0;
    };

    SimulatedTree();
    /// 0 or an errno. `follow`: through a symlink as the last component too.
    int find(std::string_view path, bool follow, Place& place) const;
    const SimulatedInode* inode(InodeNumber number) const;
    FileStatus status(InodeNumber number) const;
    std::vector<DirectoryEntry> list(InodeNumber directory) const;
    std::vector<std::string> names(InodeNumber directory, bool recursive) const;
    InodeNumber new_number() { return ++last_number_; }
    void add(InodeNumber directory, const std::string& name, InodeNumber number,
             SimulatedInode made);

    /// The errno with which a name operation would fail now; 0 if none.
    int check(const Record& record) const;
    /// Carries a record out. 0 or an errno. Of a log with gaps it does what is still possible.
    int apply(const Record& record);
    /// What of a record remains where its name is lost: a file or directory that was made is there, out of reach
    /// until a later rename that was kept gives it a name.
    void lose_name(const Record& record);

  private:
    SimulatedInode& file(InodeNumber number);
    void set_name(InodeNumber directory, const std::string& name, InodeNumber number);

    std::map<InodeNumber, SimulatedInode> inodes_;
    InodeNumber last_number_;
};

/// Whether it changes names, and not the bytes of a file.
bool is_name_operation(Opcode op);
/// Which records are durable at the end of the log, by the rules at the head of simulated_disk.hpp.
std::vector<bool> durable_records(std::span<const SimulatedDisk::Record> log);
/// `base` and what of `log` survives.
SimulatedTree after_crash(const SimulatedTree& base, std::span<const SimulatedDisk::Record> log,
                          CrashPolicy policy);
/// Puts a file or directory, with those above it, into both trees under the same inode numbers.
void put(SimulatedTree& base, SimulatedTree& now, std::string_view path, SimulatedInode made);

} // namespace safering
