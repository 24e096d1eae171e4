#include "io/mount_name.hpp"

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iterator>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/utsname.h>

namespace safering {

namespace {

std::string_view take_line(std::string_view& text) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    return line;
}

std::string_view take_word(std::string_view& line) {
    const std::size_t end = std::min(line.find(' '), line.size());
    const std::string_view word = line.substr(0, end);
    line.remove_prefix(std::min(end + 1, line.size()));
    return word;
}

// Sources of mounts may hold any bytes; the kernel escapes blanks this way.
std::string printable(std::string_view word) {
    std::string out;
    for (const char c : word)
        if (c > ' ' && c < '\x7f')
            out += c;
        else
            out += fmt::format("\\{:03o}", static_cast<unsigned char>(c));
    return out;
}

std::string host_name() {
    utsname names{};
    return ::uname(&names) == 0 ? printable(names.nodename) : std::string();
}

// Of the path, or of the nearest directory above it that exists.
bool examine(std::filesystem::path path, struct statx& status) {
    for (;;) {
        if (::statx(AT_FDCWD, path.empty() ? "." : path.c_str(), 0, STATX_MNT_ID, &status) == 0)
            return true;
        const std::filesystem::path parent = path.parent_path();
        if ((errno != ENOENT && errno != ENOTDIR) || path.empty() || parent == path)
            return false;
        path = parent;
    }
}

} // namespace

// 36 35 98:0 /root /mounted/at options [optional ...] - type source super_options
std::optional<MountName> find_mount(std::string_view mountinfo, std::uint64_t mount_id) {
    const std::string wanted = std::to_string(mount_id);
    while (!mountinfo.empty()) {
        std::string_view line = take_line(mountinfo);
        if (take_word(line) != wanted)
            continue;
        take_word(line); // the parent's id
        take_word(line); // the device
        MountName name{.type = {}, .source = {}, .root = std::string(take_word(line))};
        while (!line.empty() && take_word(line) != "-") {
        }
        name.type = take_word(line);
        name.source = take_word(line);
        if (name.type.empty() || name.source.empty())
            return std::nullopt;
        return name;
    }
    return std::nullopt;
}

std::string file_system_name(const std::string& path) {
    struct statx status{};
    if (!examine(path, status))
        return {};
    std::optional<MountName> mount;
    if ((status.stx_mask & STATX_MNT_ID) != 0) {
        std::ifstream file("/proc/self/mountinfo");
        mount =
            find_mount(std::string(std::istreambuf_iterator<char>(file), {}), status.stx_mnt_id);
    }
    if (!mount)
        return fmt::format("device {}:{} on {}", status.stx_dev_major, status.stx_dev_minor,
                           host_name());
    const std::string name = fmt::format("{} {} {}", printable(mount->type),
                                         printable(mount->source), printable(mount->root));
    // A home may be many hosts', whose disks have the same names; a server's export is the same from all of them.
    return mount->source.contains(':') ? name : fmt::format("{} on {}", name, host_name());
}

} // namespace safering
