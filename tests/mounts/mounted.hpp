// A file system of its own for a test: made, mounted on a loop device, cut off from its disk, mounted again.
#pragma once

#include <cstdint>
#include <string>

namespace safering::test {

struct FileSystemKind {
    /// For mount(8): "ext4", "xfs", "tmpfs", "ramfs".
    std::string type;
    /// Makes one on the image whose path follows; empty where there is no image.
    std::string make;
    std::uint64_t bytes;
};

class Mounted {
  public:
    /// Below the working directory, in a mount namespace of this process: whatever becomes of it, nothing stays mounted.
    /// On the thread that starts all others. Throws std::runtime_error, saying why this machine cannot.
    explicit Mounted(FileSystemKind kind);
    Mounted(const Mounted&) = delete;
    Mounted& operator=(const Mounted&) = delete;
    ~Mounted();

    const std::string& path() const { return path_; }
    /// As a power cut does: nothing reaches the disk any more, with or without what the journal gathered.
    void cut_power(bool with_journal) const;
    /// As the next boot does. Whether the old mount could be ended; where not, this is to be used no more.
    bool mount_again();
    std::uint64_t free_bytes() const;

  private:
    void mount();
    /// False where somebody still uses it: it goes when they do.
    bool unmount() noexcept;

    FileSystemKind kind_;
    std::string root_;
    std::string image_;
    std::string path_;
    bool mounted_ = false;
};

} // namespace safering::test
