// What a save in the background may take from the program that it saves.
#pragma once

#include <cstdint>

namespace safering {

/// Of one rank's writes. They are kept on average, over a few cells of the files.
struct SaveLimits {
    /// To the disk; 0: as fast as it goes.
    std::uint64_t bytes_per_second = 0;
    /// Of one core, for what the reactor's thread does (digests, copies, submission); 0: no limit. 0.1 lets it
    /// run for a tenth of the time, so on two busy cores a trainer keeps 95 %.
    double processor_share = 0;

    friend bool operator==(const SaveLimits&, const SaveLimits&) = default;
};

} // namespace safering
