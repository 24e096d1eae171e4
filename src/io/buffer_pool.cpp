#include "io/buffer_pool.hpp"

#include <cerrno>
#include <cstdio>
#include <fstream>
#include <limits>
#include <list>
#include <mutex>
#include <utility>
#include <vector>

#include <sys/mman.h>

#include <safering/byte_range.hpp>

#include "large_memory.hpp"

namespace safering {

namespace {

constexpr std::size_t page_bytes = 4096;

// Whether the mapping that starts at `address` holds huge pages. smaps is read once per pool; the
// kernel has no cheaper way to tell.
bool has_huge_pages(const std::byte* address) {
    const auto wanted = reinterpret_cast<std::uintptr_t>(address);
    std::ifstream maps("/proc/self/smaps");
    std::string line;
    bool inside = false;
    while (std::getline(maps, line)) {
        std::uintptr_t begin = 0, end = 0;
        if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2)
            inside = begin <= wanted && wanted < end;
        std::size_t kib = 0;
        if (inside && std::sscanf(line.c_str(), "AnonHugePages: %zu kB", &kib) == 1)
            return kib > 0;
    }
    return false;
}

} // namespace

// Listed when it begins to wait, moved from list to list then: to return a buffer needs no memory.
struct BufferPool::Waiter {
    std::move_only_function<void(Buffer)> on_buffer;
    Buffer buffer;
    const void* who = nullptr;
};

struct BufferPool::State {
    std::byte* mapping = nullptr;
    std::size_t mapping_bytes = 0;
    std::byte* begin = nullptr;
    std::size_t buffer_bytes = 0;
    unsigned count = 0;
    bool huge_pages = false;

    mutable std::mutex mutex;
    std::vector<std::byte*> free;
    std::list<Waiter> waiting;

    ~State() {
        if (mapping != nullptr)
            ::munmap(mapping, mapping_bytes);
    }
    /// Whether there was memory.
    bool map();
    bool populate() const;
};

// The kernel gives no alignment beyond a page, so one huge page more is mapped than is used.
bool BufferPool::State::map() {
    // A wish that no address space holds; also keeps what follows from overflowing.
    constexpr std::size_t most = std::numeric_limits<std::ptrdiff_t>::max() - 2 * huge_page_bytes;
    if (buffer_bytes > most / count)
        return false;
    const std::size_t used = round_up(buffer_bytes * count, huge_page_bytes);
    mapping_bytes = used + huge_page_bytes;
    void* address = ::mmap(nullptr, mapping_bytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (address == MAP_FAILED)
        return false;
    mapping = static_cast<std::byte*>(address);
    const auto from = reinterpret_cast<std::uintptr_t>(mapping);
    begin = mapping + (round_up(from, huge_page_bytes) - from);
    const bool accepted = ::madvise(begin, used, MADV_HUGEPAGE) == 0;
    ::madvise(begin, used, MADV_DONTFORK);
    if (!populate())
        return false;
    huge_pages = accepted && has_huge_pages(begin);
    return true;
}

// First touch costs 1.5 to 7 us a page on VMs; here it is paid before the save, not inside it.
bool BufferPool::State::populate() const {
    const std::size_t bytes = buffer_bytes * count;
    if (::madvise(begin, bytes, MADV_POPULATE_WRITE) == 0)
        return true;
    // Before 5.14 the kernel does not know it. Any other failure says that there is no memory, and
    // touching the pages would end in a signal instead of an error.
    if (errno != EINVAL)
        return false;
    for (std::size_t at = 0; at < bytes; at += page_bytes)
        *const_cast<volatile std::byte*>(begin + at) = std::byte{0};
    return true;
}

BufferPool::Buffer::Buffer(Buffer&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)), data_(std::exchange(other.data_, nullptr)) {}

BufferPool::Buffer& BufferPool::Buffer::operator=(Buffer&& other) noexcept {
    Buffer old = std::move(*this);
    pool_ = std::exchange(other.pool_, nullptr);
    data_ = std::exchange(other.data_, nullptr);
    return *this;
}

BufferPool::Buffer::~Buffer() {
    if (data_ != nullptr)
        pool_->give_back(data_);
}

std::span<std::byte> BufferPool::Buffer::span() const {
    return {data_, data_ == nullptr ? 0 : pool_->buffer_bytes()};
}

BufferPool::BufferPool(std::unique_ptr<State> state) : state_(std::move(state)) {}

BufferPool::~BufferPool() {
    SAFERING_ASSERT(state_->free.size() == state_->count);
}

Result<std::unique_ptr<BufferPool>> BufferPool::create(std::size_t buffer_bytes, unsigned count) {
    SAFERING_ASSERT(buffer_bytes != 0 && buffer_bytes % page_bytes == 0 && count != 0);
    auto state = std::make_unique<State>();
    state->buffer_bytes = buffer_bytes;
    state->count = count;
    if (!state->map()) // what is mapped already goes with the state
        return fail(std::make_error_code(std::errc::not_enough_memory), "allocate buffers",
                    std::to_string(count) + " buffers of " + std::to_string(buffer_bytes) +
                        " bytes; configure fewer or smaller ones");
    state->free.reserve(count);
    // Taken from the back: the first buffer goes first.
    for (unsigned i = count; i-- > 0;)
        state->free.push_back(state->begin + i * buffer_bytes);
    return std::unique_ptr<BufferPool>(new BufferPool(std::move(state)));
}

BufferPool::Buffer BufferPool::try_acquire() {
    const std::lock_guard lock(state_->mutex);
    if (state_->free.empty())
        return {};
    std::byte* data = state_->free.back();
    state_->free.pop_back();
    return {this, data};
}

void BufferPool::acquire(std::move_only_function<void(Buffer)> on_buffer, const void* who) {
    Buffer buffer;
    {
        const std::lock_guard lock(state_->mutex);
        if (state_->free.empty()) {
            state_->waiting.push_back({std::move(on_buffer), {}, who});
            return;
        }
        buffer = Buffer(this, state_->free.back());
        state_->free.pop_back();
    }
    on_buffer(std::move(buffer));
}

bool BufferPool::withdraw(const void* who) {
    std::list<Waiter> gone; // ends without the lock
    const std::lock_guard lock(state_->mutex);
    for (auto waiter = state_->waiting.begin(); waiter != state_->waiting.end();) {
        const auto next = std::next(waiter);
        if (waiter->who == who)
            gone.splice(gone.end(), state_->waiting, waiter);
        waiter = next;
    }
    return !gone.empty();
}

void BufferPool::give_back(std::byte* data) {
    std::list<Waiter> next;
    {
        const std::lock_guard lock(state_->mutex);
        if (state_->waiting.empty()) {
            // The buffer used last is the one whose memory is still in the caches.
            state_->free.push_back(data);
            return;
        }
        next.splice(next.end(), state_->waiting, state_->waiting.begin());
    }
    next.front().buffer = Buffer(this, data);
    deliver(std::move(next));
}

// A waiter that returns its buffer at once feeds the next waiter, and that one the next: queued
// instead of nested, or a long queue of waiters would be as deep a stack.
void BufferPool::deliver(std::list<Waiter> one) {
    thread_local std::list<Waiter>* deliveries = nullptr;
    if (deliveries != nullptr) {
        deliveries->splice(deliveries->end(), one);
        return;
    }
    deliveries = &one;
    while (!one.empty()) {
        std::list<Waiter> next;
        next.splice(next.end(), one, one.begin());
        next.front().on_buffer(std::move(next.front().buffer));
    }
    deliveries = nullptr;
}

bool BufferPool::contended() const {
    const std::lock_guard lock(state_->mutex);
    return !state_->waiting.empty();
}

std::size_t BufferPool::buffer_bytes() const {
    return state_->buffer_bytes;
}
unsigned BufferPool::count() const {
    return state_->count;
}
bool BufferPool::huge_pages() const {
    return state_->huge_pages;
}

} // namespace safering
