// A file of any content, read in any pieces: large ones past the page cache, many blocks at a time, straight to
// where they go if that lies as the file does; small ones through the page cache and a window, as a parser
// reads.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/perform.hpp"

namespace safering::checkpoint {

/// Any thread but the reactor's own, several at a time. Calls block; in a forked child they end in io_forked.
/// Of a file that is replaced the old one is read on.
class FileReader {
  public:
    /// Errors: the system's; EISDIR; checkpoint_not_a_file.
    static Result<std::unique_ptr<FileReader>> open(std::shared_ptr<Reactor> reactor,
                                                    const std::string& path);

    /// When it was opened.
    std::uint64_t size() const { return buffered_.status().size; }
    /// Fills `memory` from `offset` on as far as the file goes, and gives how far that was. Errors:
    /// io_unexpected_end where the file was cut short meanwhile. What `memory` holds after one is not told.
    Result<std::size_t> read(std::span<std::byte> memory, std::uint64_t offset);

  private:
    FileReader(std::shared_ptr<Reactor> reactor, std::string path);
    Result<void> read_small(std::span<std::byte> memory, std::uint64_t offset);
    Result<void> read_large(std::span<std::byte> memory, std::uint64_t offset);

    const std::shared_ptr<Reactor> reactor_;
    const std::string path_;
    OpenFile buffered_;
    OpenFile direct_;

    std::mutex mutex_;
    std::vector<std::byte> window_;
    std::uint64_t window_begin_ = 0;
};

} // namespace safering::checkpoint
