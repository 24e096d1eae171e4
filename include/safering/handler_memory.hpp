// Memory for the handler of one asynchronous operation of Boost.Asio, set aside before it is needed: a handler must
// be queued where no memory is left to queue it in.
#pragma once

#include <cstddef>
#include <utility>

#include <boost/asio/bind_allocator.hpp>

#include <safering/error.hpp>

namespace safering {

/// Serves one handler after the other: Asio gives the memory back before it calls the handler, which may then be
/// queued again. It must outlive the handler's stay in the queue; so a handler holds whatever it is a part of.
class HandlerMemory {
  public:
    HandlerMemory() = default;
    HandlerMemory(const HandlerMemory&) = delete;
    HandlerMemory& operator=(const HandlerMemory&) = delete;

    template <typename T>
    struct Allocator {
        using value_type = T;

        explicit Allocator(HandlerMemory& from) : memory(&from) {}
        template <typename U>
        Allocator(const Allocator<U>& other) : memory(other.memory) {}
        template <typename U>
        bool operator==(const Allocator<U>& other) const {
            return memory == other.memory;
        }

        T* allocate(std::size_t count) {
            static_assert(sizeof(T) <= bytes && alignof(T) <= alignof(std::max_align_t));
            SAFERING_ASSERT(count == 1 && !std::exchange(memory->used_, true));
            return reinterpret_cast<T*>(memory->memory_);
        }
        void deallocate(T*, std::size_t) { memory->used_ = false; }

        HandlerMemory* memory;
    };

  private:
    static constexpr std::size_t bytes = 256;
    alignas(std::max_align_t) std::byte memory_[bytes];
    bool used_ = false;
};

/// `handler`, to be queued in `memory`.
template <typename Handler>
auto in_memory(HandlerMemory& memory, Handler handler) {
    return boost::asio::bind_allocator(HandlerMemory::Allocator<std::byte>(memory),
                                       std::move(handler));
}

} // namespace safering
