// A descriptor that is closed when it goes out of scope.
#pragma once

#include <utility>

#include <unistd.h>

namespace safering {

/// -1: none. What close() says is lost: for what loses nothing by it.
class Descriptor {
  public:
    explicit Descriptor(int descriptor = -1) : descriptor_(descriptor) {}
    Descriptor(Descriptor&& other) noexcept : descriptor_(other.release()) {}
    Descriptor& operator=(Descriptor&& other) noexcept {
        if (this != &other)
            const Descriptor old(std::exchange(descriptor_, other.release()));
        return *this;
    }
    ~Descriptor() {
        if (descriptor_ >= 0)
            ::close(descriptor_);
    }

    explicit operator bool() const { return descriptor_ >= 0; }
    int get() const { return descriptor_; }
    int release() { return std::exchange(descriptor_, -1); }

  private:
    int descriptor_;
};

} // namespace safering
