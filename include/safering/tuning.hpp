// How large requests a file system wants, and how many of them in flight: measured once, kept in a small file in the
// user's cache, and taken from there by readers and writers whose caller gave no reactor.
//
//   1. A save cuts files into cells of 4 MiB, which its digests cover one by one; all its ranks and every later reader
//      must hold such a cell, so that it is the checkpoint's and not a machine's. In how many requests a cell goes to
//      the disk, and how many of these are in flight, is each rank's own affair: ranks may differ in it.
//   2. A choice counts for the file system and for the backend that it was measured with, and for nothing else.
//   3. A cache that is absent, damaged or another's never fails a save or a load: the defaults of ReactorOptions
//      are taken, and find_tuning() says why.
//
// SAFERING_TUNING=off in the environment turns 3's lookup off; measuring and storing go on.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <safering/reactor.hpp>

namespace safering {

/// One way to use a file system, and what it came to.
struct TuningRow {
    /// Of a request, ReactorOptions::transfer_bytes; a cell of 4 MiB at most.
    std::uint64_t block_bytes = 0;
    /// Requests that are with the disk at a time.
    unsigned in_flight = 0;
    /// ReactorOptions::threads. Where the backend is threads, no more requests than these really are in flight.
    unsigned threads = 0;
    /// Medians, bytes a second.
    double write_rate = 0;
    double read_rate = 0;

    bool operator==(const TuningRow&) const = default;
};

/// A measurement of a file system, and the row that was chosen.
struct Tuning {
    /// Its type, source and root as /proc/self/mountinfo has them, and the host unless the source names a server:
    /// "ext4 /dev/vda1 / on trainer-3", "nfs4 server:/export /". The device where it is not listed there.
    std::string file_system;
    BackendKind backend = BackendKind::threads;
    /// When, UTC: "2026-11-26T15:00:00Z".
    std::string measured;
    std::uint64_t file_bytes = 0;
    std::vector<TuningRow> rows;
    /// Index of a row.
    std::size_t chosen = 0;

    bool operator==(const Tuning&) const = default;
};

/// What a reactor that works as `row` says is made with: a half more buffers than hold what is in flight.
SAFERING_API ReactorOptions options_of(const TuningRow& row);

/// The index of the row to work with. A row is as good as the worse of its two directions, each as a part of the
/// best in the table. The row that ReactorOptions has by default, where nothing is more than a tenth better; else, of
/// the rows within 3 % of the best, the one with the least memory, then the fewest threads, then the fewest requests.
/// So noise neither makes buffers larger nor takes away those that hide the copies of a save, of which a measurement
/// has none. `rows` must not be empty. Pure.
SAFERING_API std::size_t choose_row(std::span<const TuningRow> rows);

struct MeasureOptions {
    static constexpr std::uint64_t least_file_bytes = std::uint64_t{32} << 20;

    BackendChoice backend = BackendChoice::automatic;
    /// Size of the scratch file, least_file_bytes at least. A server or a controller answers what fits its memory
    /// from there: take more than that where its disks are meant. Ways with more in flight than a file holds are
    /// left out.
    std::uint64_t file_bytes = std::uint64_t{256} << 20;
};

/// Measures durable direct writes and direct reads, which no page cache answers, in interleaved rounds. Some seconds,
/// and as long as a slow disk needs for one round. The file has no name, or loses it as soon as it is made: nothing
/// is left behind, also by a killed process. Memory: a buffer for each request in flight. Blocks. Any thread.
/// Errors: what the system says (ENOSPC, EROFS, EACCES); operation_not_supported where there is no direct I/O.
SAFERING_API Result<Tuning> measure_tuning(const std::string& directory,
                                           const MeasureOptions& options = {});

/// Puts it into the cache, $XDG_CACHE_HOME/safering or ~/.cache/safering: one file for each file system and backend,
/// replaced by a rename, so that processes may do this at the same time. The file's path. Blocks. Any thread.
SAFERING_API Result<std::string> store_tuning(const Tuning& tuning);

struct FoundTuning {
    std::optional<Tuning> tuning{};
    /// As Tuning has it; also where nothing was found.
    std::string file_system{};
    /// Why there is none; empty where there is one.
    std::string reason{};
};

/// What the cache holds for the file system of `path`, or of the nearest directory above it that exists. SAFERING_TUNING is
/// looked at first. Blocks. Any thread.
SAFERING_API FoundTuning find_tuning(const std::string& path, BackendKind backend);

/// A reactor with a thread of its own, as readers and writers of `path` make it where they are given none: with what
/// find_tuning() knows, else with the defaults. ReactorInfo::origin says which. Errors: what Reactor::create says.
SAFERING_API Result<std::unique_ptr<Reactor>>
create_tuned_reactor(const std::string& path, BackendChoice backend = BackendChoice::automatic);

} // namespace safering
