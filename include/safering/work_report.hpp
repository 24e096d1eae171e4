// What one rank did of a save or a load: the numbers by which it is seen where the time went.
#pragma once

#include <algorithm>
#include <cstdint>

namespace safering {

/// Of write_data, or read_data. Seconds of a monotonic clock. Copies are made while the disk works, so that the
/// phases add up to more than the whole.
struct WorkReport {
    /// From the call to the end.
    double seconds = 0;
    /// Asking the planner, checking, cutting into requests.
    double plan_seconds = 0;
    /// From the first transfer that the kernel was given to the end of the last.
    double transfer_seconds = 0;
    /// Of these: with no transfer in the kernel's hands although there was more to do; and how often that was.
    double stall_seconds = 0;
    std::uint64_t stalls = 0;
    /// Of the reactor's thread: copies between the tensors and the buffers, with the digests of a save; and the
    /// digests of a load.
    double copy_seconds = 0;
    double verify_seconds = 0;
    /// Waiting to stay within SaveLimits.
    double pause_seconds = 0;
    /// After the last transfer: fsync and close; of a load, the copies that were left.
    double flush_seconds = 0;

    /// Reads or writes that the reactor was given, and pieces of tensors that they carried: what is more of these was
    /// merged. At most so many transfers were in the reactor's hands together.
    std::uint64_t requests = 0;
    std::uint64_t pieces = 0;
    std::uint64_t most_in_flight = 0;
    /// Attempts at requests beyond the first: what came back short, interrupted or busy.
    std::uint64_t retries = 0;
    /// Bytes of the requests: past the page cache, and through it.
    std::uint64_t direct_bytes = 0;
    std::uint64_t cached_bytes = 0;
    /// Cells of the files that were copied to or from a buffer; and those that were written from where they lay.
    std::uint64_t copied_cells = 0;
    std::uint64_t uncopied_cells = 0;
    /// Digests that were taken.
    std::uint64_t digests = 0;

    /// Calls visit(name, pointer to member) for every field, in the order above.
    template <typename Visit>
    static constexpr void each_field(Visit visit) {
        visit("seconds", &WorkReport::seconds);
        visit("plan_seconds", &WorkReport::plan_seconds);
        visit("transfer_seconds", &WorkReport::transfer_seconds);
        visit("stall_seconds", &WorkReport::stall_seconds);
        visit("stalls", &WorkReport::stalls);
        visit("copy_seconds", &WorkReport::copy_seconds);
        visit("verify_seconds", &WorkReport::verify_seconds);
        visit("pause_seconds", &WorkReport::pause_seconds);
        visit("flush_seconds", &WorkReport::flush_seconds);
        visit("requests", &WorkReport::requests);
        visit("pieces", &WorkReport::pieces);
        visit("most_in_flight", &WorkReport::most_in_flight);
        visit("retries", &WorkReport::retries);
        visit("direct_bytes", &WorkReport::direct_bytes);
        visit("cached_bytes", &WorkReport::cached_bytes);
        visit("copied_cells", &WorkReport::copied_cells);
        visit("uncopied_cells", &WorkReport::uncopied_cells);
        visit("digests", &WorkReport::digests);
    }

    /// One after the other: sums, and the larger of the depths.
    WorkReport& operator+=(const WorkReport& other) {
        const std::uint64_t deepest = std::max(most_in_flight, other.most_in_flight);
        each_field([&](const char*, auto field) { this->*field += other.*field; });
        most_in_flight = deepest;
        return *this;
    }
    friend bool operator==(const WorkReport&, const WorkReport&) = default;
};

} // namespace safering
