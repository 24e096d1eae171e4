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

template <typename Call>
Result<void> PeerCopy::move(const char* name, std::uint64_t address, Call call) {
    constexpr std::size_t most_pieces = 1024; // UIO_MAXIOV
    for (std::size_t done = 0; done < pieces_.size();) {
        const std::size_t count = std::min(most_pieces, pieces_.size() - done);
        std::size_t bytes = 0;
        for (std::size_t i = done; i < done + count; ++i)
            bytes += pieces_[i].iov_len;
        const iovec remote{reinterpret_cast<void*>(address), bytes};
        const ssize_t moved = call(process_, &pieces_[done], count, &remote, 1, 0);
        if (moved != static_cast<ssize_t>(bytes)) {
            if (moved >= 0)
                errno = EFAULT; // what follows is not mapped there
            return refused(name);
        }
        address += bytes;
        done += count;
    }
    pieces_.clear();
    return {};
}

Result<void> PeerCopy::read(std::uint64_t address) {
    return move("process_vm_readv", address, ::process_vm_readv);
}

Result<void> PeerCopy::write(std::uint64_t address) {
    return move("process_vm_writev", address, ::process_vm_writev);
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
