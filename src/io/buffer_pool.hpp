// A fixed number of aligned buffers of one size, the bound on a save's or load's memory. One
// mapping, 2 MiB aligned, on transparent huge pages where they are to be had (measured: a 4 MiB
// direct write from 4 KiB pages is a thousand segments, from huge pages two; it doubles the disk's
// rate), kept out of forked children: their copy-on-write would move pages away under the kernel.
#pragma once

#include <cstddef>
#include <functional>
#include <list>
#include <memory>
#include <span>

#include <safering/error.hpp>

namespace safering {

/// Thread-safe. Buffers return themselves; the pool must outlive them.
class BufferPool {
  public:
    class Buffer {
      public:
        Buffer() = default;
        Buffer(Buffer&& other) noexcept;
        Buffer& operator=(Buffer&& other) noexcept;
        ~Buffer();
        explicit operator bool() const { return data_ != nullptr; }
        std::byte* data() const { return data_; }
        std::span<std::byte> span() const;

      private:
        friend class BufferPool;
        Buffer(BufferPool* pool, std::byte* data) : pool_(pool), data_(data) {}
        BufferPool* pool_ = nullptr;
        std::byte* data_ = nullptr;
    };

    /// Errors: ENOMEM.
    static Result<std::unique_ptr<BufferPool>> create(std::size_t buffer_bytes, unsigned count);
    ~BufferPool();

    /// A buffer, or an empty one where all are taken.
    Buffer try_acquire();
    /// Calls `on_buffer` with a buffer: at once if one is free, else when one returns, first come
    /// first served, on the thread that returns it. A waiter must not block. Throws std::bad_alloc
    /// where it would have to wait, and knows nothing of the waiter then. `who` waits, for withdraw().
    void acquire(std::move_only_function<void(Buffer)> on_buffer, const void* who = nullptr);
    /// Of `who` nobody waits any more: its callbacks are not called and gone, but for those that have been given a
    /// buffer. Whether one was waiting.
    bool withdraw(const void* who);

    /// Whether somebody waits for a buffer: a holder with more to do gives back instead of reusing.
    bool contended() const;

    std::size_t buffer_bytes() const;
    unsigned count() const;
    bool huge_pages() const;

  private:
    struct State;
    explicit BufferPool(std::unique_ptr<State> state);
    struct Waiter;
    void give_back(std::byte* data);
    static void deliver(std::list<Waiter> one);
    std::unique_ptr<State> state_;
};

} // namespace safering
