#include "io/peer_memory.hpp"

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>

namespace safering {

namespace {

std::unexpected<Error> refused(const char* what) {
    return fail({errno, std::system_category()}, what);
}

// Processes that hold a permission, of which the kernel knows one.
std::mutex permission_mutex;
unsigned permissions = 0;

} // namespace

namespace {

constexpr std::size_t most_pieces = 1024; // UIO_MAXIOV

// As many pieces at a time as the system takes; `move(pieces, bytes)` says how much it has moved.
template <typename Move>
Result<void> move_all(std::vector<iovec>& pieces, Move move) {
    for (std::size_t done = 0; done < pieces.size();) {
        const std::size_t count = std::min(most_pieces, pieces.size() - done);
        std::size_t bytes = 0;
        for (std::size_t i = done; i < done + count; ++i)
            bytes += pieces[i].iov_len;
        const ssize_t moved = move(std::span(&pieces[done], count), bytes);
        if (moved != static_cast<ssize_t>(bytes)) {
            if (moved >= 0)
                errno = EFAULT; // what follows is not mapped there
            return refused("process_vm_readv");
        }
        done += count;
    }
    pieces.clear();
    return {};
}

} // namespace

Result<void> PeerCopy::read(std::uint64_t address) {
    return move_all(pieces_, [&](std::span<const iovec> pieces, std::size_t bytes) {
        const iovec there{reinterpret_cast<void*>(address), bytes};
        address += bytes;
        return ::process_vm_readv(process_, pieces.data(), pieces.size(), &there, 1, 0);
    });
}

Result<void> PeerGather::read(std::byte* data) {
    return move_all(pieces_, [&](std::span<const iovec> pieces, std::size_t bytes) {
        const iovec here{data, bytes};
        data += bytes;
        return ::process_vm_readv(process_, &here, 1, pieces.data(), pieces.size(), 0);
    });
}

PeerPermission::PeerPermission() {
    const std::lock_guard lock(permission_mutex);
    if (permissions++ == 0)
        ::prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
}

PeerPermission::~PeerPermission() {
    const std::lock_guard lock(permission_mutex);
    if (--permissions == 0)
        ::prctl(PR_SET_PTRACER, 0, 0, 0, 0);
}

Result<SharedSegment> SharedSegment::create(std::size_t bytes) {
    Descriptor descriptor(::memfd_create("safering", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!descriptor)
        return refused("memfd_create");
    // Reserved now: a host without memory for it says so here, and not with SIGBUS.
    if (const int error = ::posix_fallocate(descriptor.get(), 0, static_cast<off_t>(bytes))) {
        errno = error;
        return refused("allocate shared memory");
    }
    if (::fcntl(descriptor.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
        return refused("seal shared memory");
    return map(std::move(descriptor), bytes);
}

Result<SharedSegment> SharedSegment::map(Descriptor descriptor, std::size_t bytes) {
    struct stat status{};
    const int seals = ::fcntl(descriptor.get(), F_GET_SEALS);
    if (seals < 0 || ::fstat(descriptor.get(), &status) != 0)
        return refused("examine shared memory");
    if ((seals & F_SEAL_SHRINK) == 0 || static_cast<std::uint64_t>(status.st_size) < bytes) {
        errno = EINVAL;
        return refused("examine shared memory");
    }
    void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor.get(), 0);
    if (data == MAP_FAILED)
        return refused("map shared memory");
    ::madvise(data, bytes, MADV_HUGEPAGE); // where the kernel has them for shared memory
    ::madvise(data, bytes, MADV_DONTFORK);
    return SharedSegment(std::move(descriptor), static_cast<std::byte*>(data), bytes);
}

SharedSegment::SharedSegment(SharedSegment&& other) noexcept
    : descriptor_(std::move(other.descriptor_)), data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

SharedSegment& SharedSegment::operator=(SharedSegment&& other) noexcept {
    if (this != &other) {
        const SharedSegment old(std::move(*this));
        descriptor_ = std::move(other.descriptor_);
        data_ = std::exchange(other.data_, nullptr);
        bytes_ = std::exchange(other.bytes_, 0);
    }
    return *this;
}

SharedSegment::~SharedSegment() {
    if (data_ != nullptr)
        ::munmap(data_, bytes_);
}

} // namespace safering
