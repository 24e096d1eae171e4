// The name of one attempt to save. Never reused: writes of a killed process may land seconds later, and must
// find a directory that nobody reads (measured, O_DIRECT on ext4).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace safering::checkpoint {

/// 32 lower-case hex digits: 48 bits of milliseconds since 1970, then 80 random bits, so that ids sort by
/// age and "older attempts" needs no clock of the file system.
std::string make_attempt_id();
bool is_attempt_id(std::string_view text);
/// A new id of the same age.
std::string renamed_attempt_id(std::string_view attempt);
/// When it was made: milliseconds since 1970.
std::uint64_t attempt_time_ms(std::string_view attempt);

/// ".<target name>.<attempt>.tmp", beside the target.
std::string attempt_directory_name(std::string_view target_name, std::string_view attempt);
/// The attempt in a name of exactly that form for exactly that target.
std::optional<std::string> parse_attempt_directory_name(std::string_view name,
                                                        std::string_view target_name);

/// A directory and its last component: what the commit renames in, and what.
struct TargetPath {
    /// Absolute, lexically normal, links resolved; no trailing slash.
    std::string path;
    std::string parent;
    std::string name;

    std::string attempt_directory(std::string_view attempt) const;
};
/// Links of the last component: followed to the directory that they mean, or kept, so that a file that
/// replaces a link replaces the link and not what it points at.
enum class LastLink { follow, keep };
TargetPath make_target_path(const std::string& path, LastLink last = LastLink::follow);

std::string join(const std::string& directory, const std::string& name);
/// One path component that a checkpoint may name: not empty, no slash, no NUL, not "." or "..".
bool is_plain_component(std::string_view name);
/// A plain component that ends in ".safetensors".
bool is_safe_file_name(std::string_view name);

inline constexpr std::string_view manifest_name = "safering.manifest.json";
inline constexpr std::string_view index_name = "model.safetensors.index.json";
/// The directory of a switch: made in the attempt's, moved into the target's by the commit, gone when it is done. In
/// it a directory has the attempt's id as its name, and in that is the record.
inline constexpr std::string_view redo_name = ".safering.redo";
inline constexpr std::string_view redo_record_name = "record.json";
/// What redo_name becomes in an attempt that may not be committed any more.
inline constexpr std::string_view revoked_name = ".safering.revoked";

} // namespace safering::checkpoint
