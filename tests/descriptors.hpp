// What a test that leaks would have more of.
#pragma once

#include <cstdint>
#include <filesystem>
#include <iterator>

namespace safering::test {

/// How many this process has open, with that of the look itself.
inline std::int64_t open_descriptors() {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {});
}

} // namespace safering::test
