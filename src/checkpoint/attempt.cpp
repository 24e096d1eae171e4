#include "checkpoint/attempt.hpp"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <random>

#include <fmt/format.h>

#include <safering/error.hpp>

#include "checkpoint/step_name.hpp"

namespace safering::checkpoint {

namespace {
constexpr std::size_t time_digits = 12;
} // namespace

std::string make_attempt_id() {
    const auto now = std::chrono::duration_cast<std::chrono::milliseconds>(
        std::chrono::system_clock::now().time_since_epoch());
    // A save cleans away the attempts that sort before its own: one that fails and is repeated within a
    // millisecond, or while the clock is set back, must come before its successor.
    static std::atomic<std::uint64_t> last{0};
    std::uint64_t before = last;
    std::uint64_t time = 0;
    do
        time = std::max(static_cast<std::uint64_t>(now.count()), before + 1);
    while (!last.compare_exchange_weak(before, time));
    std::random_device random; // the kernel's or the processor's generator, never a seeded one
    return fmt::format("{:012x}{:04x}{:08x}{:08x}", time & 0xFFFF'FFFF'FFFFu, random() & 0xFFFFu,
                       random(), random());
}

std::string renamed_attempt_id(std::string_view attempt) {
    SAFERING_ASSERT(is_attempt_id(attempt));
    return std::string(attempt.substr(0, time_digits)) + make_attempt_id().substr(time_digits);
}

bool is_attempt_id(std::string_view text) {
    return text.size() == 32 && std::ranges::all_of(text, [](char c) {
               return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
           });
}

std::uint64_t attempt_time_ms(std::string_view attempt) {
    std::uint64_t time = 0;
    const auto parsed = std::from_chars(attempt.data(), attempt.data() + time_digits, time, 16);
    SAFERING_ASSERT(is_attempt_id(attempt) && parsed.ec == std::errc());
    return time;
}

std::string attempt_directory_name(std::string_view target_name, std::string_view attempt) {
    return hidden_name(target_name, attempt, attempt_suffix);
}

std::optional<std::string> parse_attempt_directory_name(std::string_view name,
                                                        std::string_view target_name) {
    auto found = parse_hidden_name(name, attempt_suffix);
    if (!found || found->target != target_name)
        return std::nullopt;
    return std::move(found->id);
}

namespace {

// What a link names even where nothing is there so far, which weakly_canonical() leaves unresolved: it is made there.
std::filesystem::path behind_links(std::filesystem::path path) {
    constexpr int most = 40; // as the kernel
    std::error_code error;
    std::filesystem::path named = std::filesystem::read_symlink(path, error);
    for (int i = 0; !error && i < most; ++i) {
        path = path.parent_path() / named;
        named = std::filesystem::read_symlink(path, error);
    }
    return path.has_filename() ? path : path.parent_path(); // without a trailing slash
}

} // namespace

TargetPath make_target_path(const std::string& path, LastLink last) {
    std::error_code error;
    std::filesystem::path full = std::filesystem::absolute(path, error).lexically_normal();
    if (!full.has_filename() && full.has_relative_path())
        full = full.parent_path(); // a trailing slash
    // Resolved, so that the attempt lies on the file system of the real directory; what does not exist yet
    // stays as it is.
    if (last == LastLink::follow)
        full = behind_links(std::move(full));
    const std::filesystem::path resolved = std::filesystem::weakly_canonical(
        last == LastLink::follow ? full : full.parent_path(), error);
    if (!error)
        full = last == LastLink::follow ? resolved : resolved / full.filename();
    return {full.string(), full.parent_path().string(), full.filename().string()};
}

std::string TargetPath::attempt_directory(std::string_view attempt) const {
    return join(parent, attempt_directory_name(name, attempt));
}

std::string join(const std::string& directory, const std::string& name) {
    return directory.ends_with('/') ? directory + name : directory + '/' + name;
}

bool is_plain_component(std::string_view name) {
    return !name.empty() && name != "." && name != ".." &&
           name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos;
}

bool is_safe_file_name(std::string_view name) {
    return is_plain_component(name) && name.ends_with(".safetensors");
}

} // namespace safering::checkpoint
