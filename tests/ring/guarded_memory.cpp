#include "guarded_memory.hpp"

#include <algorithm>
#include <system_error>

#include <sys/mman.h>
#include <unistd.h>

namespace safering::test {

namespace {

constexpr std::byte pattern{0x5C};
constexpr std::size_t page_bytes = 4096;

std::byte* map(int segment, std::size_t bytes) {
    void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, segment, 0);
    if (memory == MAP_FAILED)
        throw std::system_error(errno, std::system_category(), "mmap");
    return static_cast<std::byte*>(memory);
}

} // namespace

GuardedMemory::~GuardedMemory() {
    for (const Segment& segment : segments_) {
        ::munmap(segment.own, segment.bytes);
        ::munmap(segment.users, segment.bytes);
    }
}

std::shared_ptr<std::byte> GuardedMemory::allocate(std::size_t bytes) {
    bytes = (bytes + page_bytes - 1) / page_bytes * page_bytes;
    const int file = ::memfd_create("guarded", MFD_CLOEXEC);
    if (file < 0 || ::ftruncate(file, static_cast<off_t>(bytes)) != 0)
        throw std::system_error(errno, std::system_category(), "memfd_create");
    const Segment segment{map(file, bytes), map(file, bytes), bytes, false};
    ::close(file);
    const std::lock_guard lock(mutex_);
    segments_.push_back(segment);
    return {segment.users, [this](std::byte* users) { give_back(users); }};
}

// The addresses stay taken: nothing else may come to lie there.
void GuardedMemory::give_back(std::byte* users) {
    const std::lock_guard lock(mutex_);
    Segment& segment = *std::ranges::find(segments_, users, &Segment::users);
    ::mmap(users, segment.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    std::fill_n(segment.own, segment.bytes, pattern);
    segment.given_back = true;
}

std::size_t GuardedMemory::in_use() const {
    const std::lock_guard lock(mutex_);
    return static_cast<std::size_t>(std::ranges::count(segments_, false, &Segment::given_back));
}

bool GuardedMemory::intact() const {
    const std::lock_guard lock(mutex_);
    return std::ranges::all_of(segments_, [](const Segment& segment) {
        return !segment.given_back || std::all_of(segment.own, segment.own + segment.bytes,
                                                  [](std::byte byte) { return byte == pattern; });
    });
}

} // namespace safering::test
