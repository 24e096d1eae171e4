// Bytes of another process's image of a file -> a destination of this one, without an image here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <safering/error.hpp>

#include "plan/box.hpp"

namespace safering::checkpoint {

/// One thread at a time.
class PeerScatter {
  public:
    /// As copy.scatter(image, memory, window), with image at `address` of the process. Errors: those of PeerGather.
    Result<void> scatter(const plan::BoxCopy& copy, int process, std::uint64_t address,
                         std::byte* memory, ByteRange window);

  private:
    std::vector<std::byte> scratch_; // a few rows' worth, hot in the cache
};

} // namespace safering::checkpoint
