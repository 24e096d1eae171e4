// A file system in memory that remembers what a power cut would take away: bytes that no
// fsync has made durable, and names whose directory has not been synced. For tests of
// everything above the Reactor.
//
// The rules of what is durable at a point of the log, as POSIX promises them and no more:
//   1. A write, truncate or allocate is durable once a later fsync of its file succeeded, and no
//      fsync of that file in between failed (after a failed one the kernel forgets that the bytes
//      were dirty).
//   2. A name operation (create, rename, unlink, make or remove a directory) happens wholly or not
//      at all; it is durable once every directory it changes has been synced later. A file's fsync
//      keeps no name.
//   3. Of what is not durable a crash may keep any part: the policy chooses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/backend.hpp"

namespace safering {

/// What a crash does with everything that is not durable.
struct CrashPolicy {
    enum class Kind {
        drop_unsynced, ///< all of it is lost
        keep_all,      ///< all of it is kept: a killed process, not a power cut
        random_subset, ///< each name operation and each 4096-byte block of a write kept or lost by
                       /// < itself
        random_torn,   ///< the same with pieces of 512 bytes
        random_prefix, ///< as an ordered journal does: names kept up to some operation, then lost
    };
    Kind kind = Kind::drop_unsynced;
    std::uint64_t seed = 0;
};

/// How much of a transfer is moved.
enum class Shortening : std::uint8_t { none, one, half, all_but_one };

/// Makes operations fail.
struct Fault {
    /// Which operations count; all if empty.
    std::optional<Opcode> op{};
    /// Only operations whose path (that of the file, for those on a descriptor) contains this.
    std::string path_contains{};
    /// How many of these succeed first.
    std::uint64_t after = 0;
    /// How many fail then.
    std::uint64_t times = 1;
    static constexpr std::uint64_t for_ever = ~std::uint64_t{0};
    /// The errno; 0 makes a transfer move nothing and report success.
    int error = 5; // EIO
    /// Instead of an error: less is moved, and success reported. Direct transfers move whole sectors,
    /// one at least, as a read that moves nothing is at the end of its file.
    Shortening shortening = Shortening::none;
};

class SimulatedTree;

/// Thread-safe; several reactors (ranks) may share one.
class SimulatedDisk {
  public:
    using InodeNumber = std::uint64_t;
    /// Alignment of direct transfers, and the unit in which a torn write is torn.
    static constexpr std::uint64_t sector_bytes = 512;

    /// One operation that changed the disk, or tried to. The log holds them in the
    /// order of their effects.
    struct Record {
        Opcode op = Opcode::close;
        bool failed = false;
        InodeNumber inode = 0;         ///< the file or directory concerned
        InodeNumber directory = 0;     ///< of `name`
        InodeNumber new_directory = 0; ///< rename
        std::string name{};
        std::string new_name{};
        std::uint64_t offset = 0;
        std::uint64_t length = 0;      ///< allocate, truncate: as requested; write: bytes moved
        std::vector<std::byte> data{}; ///< write
        std::string path{};            ///< for people
    };

    SimulatedDisk();
    ~SimulatedDisk();

    // What a power cut leaves.

    /// The disk after a crash now, or after the first `records` entries of the log. The new disk
    /// has an empty log and no faults, and everything on it is durable.
    std::shared_ptr<SimulatedDisk> crash(CrashPolicy policy = {}) const;
    std::shared_ptr<SimulatedDisk> crash_after(std::size_t records, CrashPolicy policy) const;
    std::vector<Record> log() const;
    std::size_t log_size() const;
    /// How many operations of any kind were performed, failed ones included.
    std::uint64_t operations() const;

    /// A disk on which all of `tree` is durable, with an empty log and no faults.
    static std::shared_ptr<SimulatedDisk> holding(SimulatedTree tree);
    /// The same in place, under the reactors that use it; nothing may be in flight. Descriptors, faults and
    /// interceptors are forgotten.
    void restart(SimulatedTree tree);
    /// What the log is applied to, and what is on the disk now.
    SimulatedTree base() const;
    SimulatedTree now() const;

    // How it misbehaves.

    /// Called with every operation before it is carried out, under the disk's lock. What it changes
    /// in the operation is what happens; where it returns a completion, the operation ends so and
    /// nothing else happens. It must not call the disk.
    using Interceptor = std::function<std::optional<Completion>(Operation&)>;
    void intercept(Interceptor interceptor);

    /// Called with every operation after it was carried out, in the same way: what it makes of the completion
    /// is what the reactor is told.
    void intercept_end(std::function<void(Operation&)> interceptor);

    void inject(Fault fault);
    void clear_faults();
    /// What faults have hit since they were last cleared.
    struct Hit {
        Opcode op;
        std::string path;
        std::string new_path;
    };
    std::vector<Hit> hits() const;
    /// Every transfer may move less than it was asked to (direct ones whole blocks
    /// of 512, some nothing).
    void shorten_transfers(std::uint64_t seed);
    /// Operations in flight end in a random order, instead of the order of their submission.
    void shuffle_completions(std::uint64_t seed);
    /// Opens with Caching::direct are answered with direct == false; allocate only sets the size.
    void refuse_direct();
    /// Operations stay in flight until release().
    void hold();
    void release();

    // For tests: what is on it now, synced or not. Paths are absolute or relative to the root.

    bool exists(std::string_view path) const;
    /// Asserts that it exists.
    std::vector<std::byte> read_file(std::string_view path) const;
    std::string read_text(std::string_view path) const;
    /// Makes or replaces a file, and directories above it; durable at once and not in the log.
    void write_file(std::string_view path, std::span<const std::byte> bytes);
    void write_text(std::string_view path, std::string_view text);
    void make_directory(std::string_view path);
    void make_symlink(std::string_view path, std::string_view target);
    /// Names in a directory, sorted; all files below it, with their paths, if `recursive`.
    std::vector<std::string> list(std::string_view path, bool recursive = false) const;
    std::size_t open_files() const;

    // The backend's.

    void perform(Operation& operation);
    void close(int file);
    bool is_direct(int file) const;
    bool held() const;
    /// Index below `count` of the operation to end next.
    std::size_t choose(std::size_t count);
    std::uint64_t add_wake(Backend::Wake wake);
    void remove_wake(std::uint64_t id);
    bool grants_direct() const;

    struct State;

  private:
    explicit SimulatedDisk(std::unique_ptr<State> state);
    mutable std::mutex mutex_;
    std::unique_ptr<State> state_;
};

std::unique_ptr<Backend> make_simulated_backend(std::shared_ptr<SimulatedDisk> disk,
                                                unsigned depth);
/// A reactor with a thread of its own, or on `context`.
std::unique_ptr<Reactor> make_simulated_reactor(std::shared_ptr<SimulatedDisk> disk,
                                                ReactorOptions options = {});
std::unique_ptr<Reactor> make_simulated_reactor(std::shared_ptr<SimulatedDisk> disk,
                                                boost::asio::io_context& context,
                                                ReactorOptions options = {});

} // namespace safering
