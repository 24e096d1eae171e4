// What a part of a run cost: time, processor time, and memory on top of what was there before.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <safering/error.hpp>

namespace safering::tools {

struct Cost {
    double seconds = 0;
    /// Of the whole process, kernel time and the kernel's helper threads included.
    double cpu_seconds = 0;
    /// Peak resident memory during the part less `baseline`; nothing where the kernel does not let
    /// us reset the peak.
    std::optional<std::uint64_t> extra_bytes;
};

/// Resident memory now.
std::uint64_t resident_bytes();
/// Memory that can be had without swapping.
std::uint64_t available_bytes();

/// From construction to stop().
class Measurement {
  public:
    explicit Measurement(std::uint64_t baseline_bytes);
    Cost stop() const;

  private:
    std::uint64_t baseline_bytes_;
    bool peak_was_reset_;
    double cpu_begin_;
    double begin_;
};

/// Member by member, the middle of an odd number of values.
Cost median(const std::vector<Cost>& costs);

/// Makes the next read of a checkpoint's files come from the disk: writes them back, then drops
/// them from the page cache. Throws Exception.
void drop_from_cache(const std::string& directory);

} // namespace safering::tools
