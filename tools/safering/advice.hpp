// What somebody can change about a machine so that saves and loads are faster, as commands to type.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <safering/reactor.hpp>

#include "huge_pages.hpp"

namespace safering::tools {

/// What was found about a machine; pure input of advise().
struct Machine {
    ReactorInfo reactor;
    /// Whether the backend was asked for by name: then nothing is said about it.
    bool backend_was_chosen = false;
    FileSystemInfo file_system;
    HugePages huge_pages;
    /// kernel.io_uring_disabled; nothing where the kernel has no such setting.
    std::optional<int> io_uring_disabled;
    /// Bytes; nothing: unlimited.
    std::optional<std::uint64_t> memlock_bytes;
    std::uint64_t open_files = 0;
};

/// The limits and settings of this process and kernel.
void read_limits(Machine& machine);

/// Each one line: what limits, and what to type. Empty: nothing to be gained.
std::vector<std::string> advise(const Machine& machine);

} // namespace safering::tools
