// One operation on a file system, as a value, and how it ended. A request says what; the Reactor and its
// backend say how. Every request ends in exactly one completion.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <safering/error.hpp>

namespace safering {

enum class Opcode : std::uint8_t {
    open,             ///< path, mode, caching -> file
    close,            ///< file; after the last completion of every request that uses it
    allocate,         ///< file, [offset, offset+length): reserves the blocks and sets the size
    read,             ///< file, data, length, offset, minimum
    write,            ///< file, data, length, offset
    fsync,            ///< file: data and metadata; a failure is final, never retry it
    truncate,         ///< file, length: the new size
    rename,           ///< path -> new_path; `replace` says whether an existing new_path may vanish
    unlink,           ///< path of a file
    make_directory,   ///< path; fails where it exists
    remove_directory, ///< path of an empty directory
    sync_directory,   ///< path: its names become durable
    stat,             ///< path (follows links) -> status
    list,             ///< path of a directory -> entries, without "." and ".."
};

enum class OpenMode : std::uint8_t {
    read,        ///< an existing file, read only; links are followed
    read_strict, ///< the same, links are refused
    update,      ///< an existing file, for writing only; links are refused
    create,      ///< a new file, for writing only; fails where the name exists in any form
};

enum class Caching : std::uint8_t {
    buffered, ///< through the page cache
    direct,   ///< O_DIRECT; where the file system refuses it the completion says `direct == false`
};

struct Request {
    Opcode op = Opcode::close;
    OpenMode mode = OpenMode::read;
    Caching caching = Caching::buffered;
    bool replace = false;
    int file = -1;
    /// Borrowed until the completion; direct transfers want data, length and offset aligned as
    /// Reactor::file_system() says.
    std::byte* data = nullptr;
    std::uint64_t length = 0;
    std::uint64_t offset = 0;
    /// read: how many bytes must arrive; fewer is io_unexpected_end. A direct read is rounded out to whole
    /// blocks, past the end of the file too, and needs only the bytes that exist. 0 means `length`.
    std::uint64_t minimum = 0;
    std::string path{};
    std::string new_path{};
};

enum class FileKind : std::uint8_t { regular, directory, symlink, other };

struct FileStatus {
    FileKind kind = FileKind::other;
    std::uint64_t size = 0;
    std::uint64_t device = 0;
    std::uint64_t inode = 0;
};

struct DirectoryEntry {
    std::string name;
    FileKind kind = FileKind::other;
};

struct Completion {
    /// Empty on success. Partial transfers were resumed already: a write that succeeds moved all its bytes.
    std::error_code error{};
    /// open: the file. read: bytes that arrived.
    std::uint64_t result = 0;
    /// open with Caching::direct: whether the file system granted it.
    bool direct = false;
    /// Attempts beyond the first: what came back short, interrupted or busy was tried again.
    unsigned retries = 0;
    /// open and stat.
    FileStatus status{};
    /// list.
    std::vector<DirectoryEntry> entries{};
};

/// The Error of a failed completion, with the request's own operation, path, offset and length.
/// `file_name` names the file of requests that carry only a descriptor. Only the code where there is no memory
/// for words.
SAFERING_API Error to_error(const Request& request, const Completion& completion,
                            std::string file_name = {});
SAFERING_API std::string_view name(Opcode op);

} // namespace safering
