#include "allocations.hpp"

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace safering::test::allocations {

namespace {

enum Armed : int { nobody, caller, all };

std::atomic<int> armed = nobody;
std::atomic<std::uint64_t> seen = 0;
std::atomic<std::uint64_t> first = 0;
std::atomic<std::uint64_t> last = 0;
std::atomic<bool> failed = false;
std::atomic<std::int64_t> alive = 0;
thread_local bool is_caller = false;
thread_local unsigned exempt = 0;

bool fails_now() {
    const int who = armed.load(std::memory_order_acquire);
    if (who == nobody || exempt != 0 || (who == caller && !is_caller))
        return false;
    const std::uint64_t number = seen.fetch_add(1, std::memory_order_relaxed);
    if (number < first || number > last)
        return false;
    failed = true;
    return true;
}

void* allocate(std::size_t bytes, std::size_t alignment) {
    void* memory = nullptr;
    if (!fails_now())
        memory =
            alignment <= alignof(std::max_align_t)
                ? std::malloc(bytes == 0 ? 1 : bytes)
                : std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    if (memory == nullptr)
        throw std::bad_alloc();
    alive.fetch_add(1, std::memory_order_relaxed);
    return memory;
}

void release(void* memory) noexcept {
    if (memory == nullptr)
        return;
    alive.fetch_sub(1, std::memory_order_relaxed);
    std::free(memory);
}

} // namespace

void fail(Threads threads, Failing failing) {
    is_caller = true;
    failed = false;
    seen = 0;
    first = failing.after;
    last = failing.for_good ? ~std::uint64_t{0} : failing.after;
    armed.store(threads == Threads::caller ? caller : all, std::memory_order_release);
}

bool disarm() {
    armed = nobody;
    return failed;
}

std::uint64_t count() {
    return seen;
}

void begin_exemption() {
    ++exempt;
}
void end_exemption() {
    --exempt;
}

std::int64_t living() {
    return alive;
}

} // namespace safering::test::allocations

using safering::test::allocations::allocate;
using safering::test::allocations::release;

// All of them: by default the others come down to two, but not under a sanitizer, which has its own.
void* operator new(std::size_t bytes) {
    return allocate(bytes, 1);
}
void* operator new[](std::size_t bytes) {
    return allocate(bytes, 1);
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
    return allocate(bytes, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t bytes, std::align_val_t alignment) {
    return allocate(bytes, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
    try {
        return allocate(bytes, 1);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}
void* operator new[](std::size_t bytes, const std::nothrow_t& nothrow) noexcept {
    return operator new(bytes, nothrow);
}
void operator delete(void* memory) noexcept {
    release(memory);
}
void operator delete[](void* memory) noexcept {
    release(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
    release(memory);
}
void operator delete[](void* memory, std::size_t) noexcept {
    release(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
    release(memory);
}
void operator delete[](void* memory, std::align_val_t) noexcept {
    release(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
    release(memory);
}
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept {
    release(memory);
}
