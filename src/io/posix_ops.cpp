#include "io/posix_ops.hpp"

#include <cerrno>
#include <cstring>
#include <memory>
#include <new>

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <unistd.h>

namespace safering::posix {

namespace {

FileKind kind_of(mode_t mode) {
    if (S_ISREG(mode))
        return FileKind::regular;
    if (S_ISDIR(mode))
        return FileKind::directory;
    return S_ISLNK(mode) ? FileKind::symlink : FileKind::other;
}

FileStatus status_of(const struct stat& status) {
    return {.kind = kind_of(status.st_mode),
            .size = static_cast<std::uint64_t>(status.st_size),
            .device = status.st_dev,
            .inode = status.st_ino};
}

Completion result_of(long result) {
    if (result < 0)
        return {.error = last_error()};
    return {.result = static_cast<std::uint64_t>(result)};
}

int open_flags(OpenMode mode) {
    // O_NONBLOCK: a FIFO under the name must not hang the open; it means nothing to regular files.
    constexpr int always = O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    switch (mode) {
    case OpenMode::read: return always | O_RDONLY;
    case OpenMode::read_strict: return always | O_RDONLY | O_NOFOLLOW;
    // Not for reading: NFS would fetch the rest of a page that is written in part, and send all of it back, over what
    // another host has written there meanwhile (nfs_want_read_modify_write, nfs_can_extend_write).
    case OpenMode::update: return always | O_WRONLY | O_NOFOLLOW;
    case OpenMode::create: return always | O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW;
    }
    return always;
}

Completion open(const Request& request) {
    const int file = ::open(request.path.c_str(), open_flags(request.mode), 0666);
    if (file < 0)
        return {.error = last_error()};
    struct stat status{};
    const int flags = ::fcntl(file, F_GETFL);
    // O_NONBLOCK goes: io_uring would answer EAGAIN instead of waiting. O_DIRECT comes only now: an
    // open() that refuses it may have created the file already, and a second O_EXCL would fail.
    if (flags < 0 || ::fcntl(file, F_SETFL, flags & ~O_NONBLOCK) != 0 ||
        ::fstat(file, &status) != 0) {
        const std::error_code error = last_error();
        ::close(file);
        return {.error = error};
    }
    const bool direct = request.caching == Caching::direct && S_ISREG(status.st_mode) &&
                        direct_alignment(file) &&
                        ::fcntl(file, F_SETFL, (flags & ~O_NONBLOCK) | O_DIRECT) == 0;
    return {
        .result = static_cast<std::uint64_t>(file), .direct = direct, .status = status_of(status)};
}

Completion allocate(const Operation& operation) {
    const int file = operation.request.file;
    const auto offset = static_cast<off_t>(operation.offset);
    const auto length = static_cast<off_t>(operation.length);
    if (::fallocate(file, 0, offset, length) == 0)
        return {};
    if (errno != EOPNOTSUPP && errno != ENOSYS)
        return {.error = last_error()};
    // No reservation to be had here; the size still is. Never shrink what others may have written.
    struct stat status{};
    if (::fstat(file, &status) != 0)
        return {.error = last_error()};
    if (status.st_size >= offset + length)
        return {};
    return result_of(::ftruncate(file, offset + length));
}

// For file systems without RENAME_NOREPLACE. link() refuses an existing name atomically, and a
// crash between the two calls leaves both names of one file. Directories cannot be linked: rename()
// itself refuses a non-empty directory, so the check before it leaves only an empty one, made
// meanwhile by someone else, to be replaced unseen.
Completion rename_without_replacing(const char* from, const char* to) {
    struct stat status{};
    if (::lstat(from, &status) != 0)
        return {.error = last_error()};
    if (S_ISDIR(status.st_mode)) {
        struct stat existing{};
        if (::lstat(to, &existing) == 0)
            return {.error = std::make_error_code(std::errc::file_exists)};
        if (errno != ENOENT)
            return {.error = last_error()};
        return result_of(::rename(from, to));
    }
    if (::link(from, to) != 0)
        return {.error = last_error()};
    // The new name exists, and that is what a rename commits: whoever reads the directory
    // from now on finds the file. An old name that cannot be removed is litter, not a rename
    // that has not happened; an error here would have the caller report a failure that
    // everybody can see succeeded.
    ::unlink(from);
    return {};
}

Completion rename(const Request& request) {
    const char* from = request.path.c_str();
    const char* to = request.new_path.c_str();
    if (request.replace)
        return result_of(::rename(from, to));
    if (::renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0)
        return {};
    if (errno == EINVAL || errno == ENOSYS)
        return rename_without_replacing(from, to);
    return {.error = last_error()};
}

Completion sync_directory(const Request& request) {
    const int directory = ::open(request.path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        return {.error = last_error()};
    Completion completion = result_of(::fsync(directory));
    ::close(directory);
    return completion;
}

Completion stat(const Request& request) {
    struct stat status{};
    if (::stat(request.path.c_str(), &status) != 0)
        return {.error = last_error()};
    return {.status = status_of(status)};
}

FileKind kind_of(DIR* directory, const dirent& entry) {
    switch (entry.d_type) {
    case DT_REG: return FileKind::regular;
    case DT_DIR: return FileKind::directory;
    case DT_LNK: return FileKind::symlink;
    case DT_UNKNOWN: break; // the file system does not say
    default: return FileKind::other;
    }
    struct stat status{};
    if (::fstatat(::dirfd(directory), entry.d_name, &status, AT_SYMLINK_NOFOLLOW) != 0)
        return FileKind::other;
    return kind_of(status.st_mode);
}

struct Closedir {
    void operator()(DIR* directory) const { ::closedir(directory); }
};

Completion list(const Request& request) try {
    const std::unique_ptr<DIR, Closedir> directory(::opendir(request.path.c_str()));
    if (directory == nullptr)
        return {.error = last_error()};
    Completion completion;
    for (;;) {
        errno = 0;
        const dirent* entry = ::readdir(directory.get());
        if (entry == nullptr)
            break;
        if (std::strcmp(entry->d_name, ".") != 0 && std::strcmp(entry->d_name, "..") != 0)
            completion.entries.push_back({entry->d_name, kind_of(directory.get(), *entry)});
    }
    if (errno != 0)
        completion.error = last_error();
    return completion;
} catch (const std::bad_alloc&) { // names want memory
    return {.error = std::make_error_code(std::errc::not_enough_memory)};
}

} // namespace

Completion close(int file) {
    // Linux has closed the descriptor even where it says EINTR.
    if (::close(file) != 0 && errno != EINTR)
        return {.error = last_error()};
    return {};
}

std::error_code last_error() {
    return {errno, std::system_category()};
}

std::error_code error_of(int result) {
    return result < 0 ? std::error_code{-result, std::system_category()} : std::error_code{};
}

Completion completion_of(int result) {
    if (result < 0)
        return {.error = error_of(result)};
    return {.result = static_cast<std::uint64_t>(result)};
}

bool is_direct(int file) {
    const int flags = ::fcntl(file, F_GETFL);
    return flags >= 0 && (flags & O_DIRECT) != 0;
}

std::optional<DirectAlignment> direct_alignment(const struct statx& status) {
    DirectAlignment alignment;
    if ((status.stx_mask & STATX_DIOALIGN) == 0)
        return alignment;
    constexpr std::uint32_t planned = 4096;
    const std::uint32_t memory = status.stx_dio_mem_align, offset = status.stx_dio_offset_align;
    // 0 says that transfers would fail, or silently go through the page cache.
    if (memory == 0 || offset == 0 || memory > planned || offset > planned)
        return std::nullopt;
    return DirectAlignment{.memory = memory, .offset = offset};
}

std::optional<DirectAlignment> direct_alignment(int file) {
    struct statx status{};
    if (::statx(file, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) != 0)
        status.stx_mask = 0;
    return direct_alignment(status);
}

std::uint32_t direct_offset_alignment(int file) {
    return direct_alignment(file).value_or(DirectAlignment{}).offset;
}

void perform(Operation& operation) {
    const Request& request = operation.request;
    const auto offset = static_cast<off_t>(operation.offset);
    Completion& completion = operation.completion;
    switch (request.op) {
    case Opcode::open: completion = open(request); break;
    case Opcode::close: completion = close(request.file); break;
    case Opcode::allocate: completion = allocate(operation); break;
    case Opcode::read:
        completion = result_of(::pread(request.file, operation.data, operation.length, offset));
        break;
    case Opcode::write:
        completion = result_of(::pwrite(request.file, operation.data, operation.length, offset));
        break;
    case Opcode::fsync: completion = result_of(::fsync(request.file)); break;
    case Opcode::truncate:
        completion = result_of(::ftruncate(request.file, static_cast<off_t>(request.length)));
        break;
    case Opcode::rename: completion = rename(request); break;
    case Opcode::unlink: completion = result_of(::unlink(request.path.c_str())); break;
    case Opcode::make_directory: completion = result_of(::mkdir(request.path.c_str(), 0777)); break;
    case Opcode::remove_directory: completion = result_of(::rmdir(request.path.c_str())); break;
    case Opcode::sync_directory: completion = sync_directory(request); break;
    case Opcode::stat: completion = stat(request); break;
    case Opcode::list: completion = list(request); break;
    }
}

} // namespace safering::posix
