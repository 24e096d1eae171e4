// What identifies a file system: the words of /proc/self/mountinfo.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace safering {

struct MountName {
    std::string type;
    /// A device, "server:/export", or a word.
    std::string source;
    /// What of the file system is mounted.
    std::string root;
};

/// The mount with this id; blanks and control characters in names stay \ooo. Pure.
std::optional<MountName> find_mount(std::string_view mountinfo, std::uint64_t mount_id);

/// The name of the file system of `path`, or of the nearest directory above it that exists: printable ASCII.
/// Tuning::file_system says of what. Empty where nothing of it can be examined. Blocks.
std::string file_system_name(const std::string& path);

} // namespace safering
