#include "io/file_system.hpp"

#include <array>
#include <cerrno>
#include <random>

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "io/posix_ops.hpp"

namespace safering {

namespace {

std::string type_name(unsigned long magic) {
    struct Known {
        unsigned long magic;
        const char* name;
    };
    // linux/magic.h lacks those with a number.
    static constexpr std::array known{Known{EXT4_SUPER_MAGIC, "ext4"},
                                      Known{XFS_SUPER_MAGIC, "xfs"},
                                      Known{BTRFS_SUPER_MAGIC, "btrfs"},
                                      Known{F2FS_SUPER_MAGIC, "f2fs"},
                                      Known{TMPFS_MAGIC, "tmpfs"},
                                      Known{RAMFS_MAGIC, "ramfs"},
                                      Known{OVERLAYFS_SUPER_MAGIC, "overlayfs"},
                                      Known{NFS_SUPER_MAGIC, "nfs"},
                                      Known{FUSE_SUPER_MAGIC, "fuse"},
                                      Known{CEPH_SUPER_MAGIC, "ceph"},
                                      Known{V9FS_MAGIC, "9p"},
                                      Known{0xFF534D42UL, "cifs"},
                                      Known{0xFE534D42UL, "smb2"},
                                      Known{0x2FC12FC1UL, "zfs"},
                                      Known{0x0BD00BD0UL, "lustre"},
                                      Known{0x47504653UL, "gpfs"},
                                      Known{0x19830326UL, "beegfs"},
                                      Known{0xCA451A4EUL, "bcachefs"}};
    for (const Known& entry : known)
        if (entry.magic == magic)
            return entry.name;
    return fmt::format("{:#x}", magic);
}

std::unexpected<Error> refused(const std::string& directory, std::string operation) {
    return std::unexpected(
        Error{.code = posix::last_error(), .operation = std::move(operation), .file = directory});
}

Result<FileSystemInfo> probe(const std::string& directory) {
    struct statfs statistics{};
    if (::statfs(directory.c_str(), &statistics) != 0)
        return refused(directory, "examine file system of");
    FileSystemInfo info{.type = type_name(static_cast<unsigned long>(statistics.f_type))};

    const Descriptor file = open_unnamed(directory);
    if (!file)
        return refused(directory, "create a probe file in");
    const int flags = ::fcntl(file.get(), F_GETFL);
    const auto alignment = posix::direct_alignment(file.get());
    info.direct =
        alignment.has_value() && flags >= 0 && ::fcntl(file.get(), F_SETFL, flags | O_DIRECT) == 0;
    // One block is enough to learn whether it is implemented. A full disk implements it too.
    info.allocate = ::fallocate(file.get(), 0, 0, 4096) == 0 || errno == ENOSPC || errno == EDQUOT;
    if (alignment) {
        info.memory_alignment = alignment->memory;
        info.offset_alignment = alignment->offset;
    }
    return info;
}

} // namespace

Descriptor open_unnamed(const std::string& directory) {
    Descriptor unnamed(::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
    if (unnamed || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL))
        return unnamed;
    std::random_device random;
    const std::string path =
        fmt::format("{}/.safering.probe.{:08x}{:08x}", directory, random(), random());
    Descriptor named(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (named)
        ::unlink(path.c_str());
    return named;
}

Result<FileSystemInfo> FileSystems::at(const std::string& directory) {
    struct stat status{};
    if (::stat(directory.c_str(), &status) != 0)
        return refused(directory, "examine");
    const std::lock_guard lock(mutex_);
    if (const auto found = known_.find(status.st_dev); found != known_.end())
        return found->second;
    Result<FileSystemInfo> info = probe(directory);
    if (info)
        known_.emplace(status.st_dev, *info);
    return info;
}

} // namespace safering
