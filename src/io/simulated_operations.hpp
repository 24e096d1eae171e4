// What a simulated disk does with an operation: descriptors, faults, short transfers, and the log
// that a crash replays.
#pragma once

#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "io/simulated_state.hpp"

namespace safering {

/// The disk's inside; its SimulatedDisk holds the lock.
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

    Interceptor interceptor;
    std::function<void(Operation&)> end_interceptor;
    std::vector<Armed> faults;
    std::vector<Hit> hits;
    std::optional<std::mt19937_64> shorten;
    std::optional<std::mt19937_64> shuffle;
    bool direct = true;
    bool held = false;
    std::map<std::uint64_t, Backend::Wake> wakes;
    std::uint64_t next_wake = 0;

    /// The first fault that hits this operation.
    std::optional<Fault> fault(const Operation& operation);
    void carry_out(Operation& operation);
    void open(Operation& operation);
    void transfer(Operation& operation, const OpenFile& file, const std::optional<Fault>& hit);
    void change_size(Operation& operation, const OpenFile& file);
    void change_name(Operation& operation);
    std::uint64_t shortened(std::uint64_t length, bool direct_file);
    std::string path_of(const Request& request) const;
    void record(Record entry, std::error_code& error);
};

} // namespace safering
