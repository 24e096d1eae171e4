// Memory for copies of tensors, kept from one save to the next: touching fresh pages costs more than the copy
// itself (measured: 1.5 to 7 us a page of 4 KiB on virtual machines). Segments lie on transparent huge pages, so
// that they can be written from where they are; holds() is how a write knows that they do.
//
// A segment that comes back waits for the next user. So many wait as were in use together, and no more.
#pragma once

#include <cstddef>
#include <functional>
#include <list>
#include <memory>
#include <mutex>

#include <safering/error.hpp>

namespace safering::io {

/// Thread-safe. Must outlive what it lends.
class StagingPool {
  public:
    /// What else is to be done with a segment while it exists, as page-locking for a device. Called without a
    /// lock, on the thread that takes or gives back.
    struct Hooks {
        std::function<void(std::byte*, std::size_t)> made{};
        std::function<void(std::byte*, std::size_t)> going{};
    };

    /// Never destroyed: tensors may live as long as the process.
    static StagingPool& of_process();

    /// At least `bytes`, 2 MiB aligned, with any content; null for none. Goes back when the last copy of the
    /// pointer is gone. Errors: ENOMEM.
    Result<std::shared_ptr<std::byte>> take(std::size_t bytes);
    /// A segment of `bytes` is made and touched, and waits.
    Result<void> reserve(std::size_t bytes);
    /// Whether all of it lies in one segment.
    bool holds(const std::byte* data, std::size_t bytes) const;
    /// Frees what waits.
    void release();
    /// For segments made from now on.
    void set_hooks(Hooks hooks);
    /// Of all segments, in use or not.
    std::size_t bytes() const;

  private:
    struct Segment {
        std::shared_ptr<std::byte> memory;
        std::size_t bytes = 0;
        std::shared_ptr<const Hooks> hooks;
        bool lent = false;
    };
    using Segments = std::list<Segment>;

    Result<Segments> make(std::size_t bytes) const;
    void give_back(Segments::iterator segment);
    static void free(Segments segments);

    mutable std::mutex mutex_;
    Segments segments_;
    std::shared_ptr<const Hooks> hooks_ = std::make_shared<Hooks>();
    std::size_t most_lent_ = 0;
};

} // namespace safering::io
