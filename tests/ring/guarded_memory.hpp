// Memory that shows whoever writes to it once it has been given back.
//
// It is a segment mapped twice. Giving it back takes the users' mapping away, so that a copy into it fails with EFAULT
// or a signal, and fills the pages with a pattern; what a device still writes to pages that were pinned before changes
// the pattern.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

namespace safering::test {

class GuardedMemory {
  public:
    GuardedMemory() = default;
    GuardedMemory(const GuardedMemory&) = delete;
    GuardedMemory& operator=(const GuardedMemory&) = delete;
    ~GuardedMemory();

    /// Given back with its last owner. This must outlive it.
    std::shared_ptr<std::byte> allocate(std::size_t bytes);
    /// Segments that are in use.
    std::size_t in_use() const;
    /// Whether no segment has changed since it was given back.
    bool intact() const;

  private:
    struct Segment {
        std::byte* users;
        std::byte* own;
        std::size_t bytes;
        bool given_back;
    };
    void give_back(std::byte* users);

    mutable std::mutex mutex_;
    std::vector<Segment> segments_;
};

} // namespace safering::test
