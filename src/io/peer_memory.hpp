// The memory of another process of this host: read in place, or shared.
//
// In place by process_vm_readv, one copy, which want the same user and, under Yama, the
// other's permission; some containers refuse them. Then through a segment that both map, two copies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <sys/uio.h>

#include <safering/error.hpp>

#include "io/peer_socket.hpp"

namespace safering {

/// Copies from another process. Of both the errors: what the system says (EPERM where it is not permitted, ESRCH
/// where the process has ended, EFAULT).
///
/// Bytes that lie together there, into pieces of this process's memory.
class PeerCopy {
  public:
    /// `process` as this process knows it.
    explicit PeerCopy(int process) : process_(process) {}
    /// A piece that comes next.
    void add(std::byte* data, std::size_t bytes) { pieces_.push_back({data, bytes}); }
    /// All pieces, from `address` on in the other process; afterwards there are none.
    Result<void> read(std::uint64_t address);

  private:
    int process_;
    std::vector<iovec> pieces_;
};

/// Pieces of its memory, into bytes that lie together here.
class PeerGather {
  public:
    explicit PeerGather(int process) : process_(process) {}
    /// A piece that comes next.
    void add(std::uint64_t address, std::size_t bytes) {
        pieces_.push_back({reinterpret_cast<void*>(address), bytes});
    }
    /// All pieces; afterwards there are none.
    Result<void> read(std::byte* data);

  private:
    int process_;
    std::vector<iovec> pieces_;
};

/// Lets any process of this user read this one's memory while one lives, where Yama forbids it by
/// default (kernel.yama.ptrace_scope 1). The kernel knows one such permission a process: one that was given
/// to another process before is lost.
class PeerPermission {
  public:
    PeerPermission();
    ~PeerPermission();
    PeerPermission(const PeerPermission&) = delete;
    PeerPermission& operator=(const PeerPermission&) = delete;
};

/// Memory of two processes: one creates it, the other maps the descriptor. It has no name, and is gone with the
/// last of them.
class SharedSegment {
  public:
    static Result<SharedSegment> create(std::size_t bytes);
    /// Errors: also where it is smaller, or could shrink while it is used.
    static Result<SharedSegment> map(Descriptor descriptor, std::size_t bytes);
    SharedSegment(SharedSegment&& other) noexcept;
    SharedSegment& operator=(SharedSegment&& other) noexcept;
    ~SharedSegment();

    std::byte* data() const { return data_; }
    std::size_t size() const { return bytes_; }
    int descriptor() const { return descriptor_.get(); }

  private:
    SharedSegment(Descriptor descriptor, std::byte* data, std::size_t bytes)
        : descriptor_(std::move(descriptor)), data_(data), bytes_(bytes) {}

    Descriptor descriptor_;
    std::byte* data_ = nullptr;
    std::size_t bytes_ = 0;
};

} // namespace safering
