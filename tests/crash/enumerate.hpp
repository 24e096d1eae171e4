// Goes through the states that a crash may leave at every point of a recording, and holds each against the promise.
#pragma once

#include <string>

#include "recovery.hpp"

namespace safering::test {

struct Scenario {
    std::string name;
    Recording recording;
    /// Length of the log when success was reported; more than that is never durable by promise.
    std::size_t reported_at = 0;
    Expectations expectations;
};

struct EnumerationOptions {
    /// Points with at most so many choices are enumerated exhaustively.
    unsigned exhaustive_bits = 14;
    /// At the others so many are drawn.
    std::uint64_t samples = 3000;
    std::uint64_t seed = 1;
    /// One run of the reader in so many is followed by the further checks.
    unsigned deep_every = 2;
};

struct Enumeration {
    std::uint64_t states = 0;
    /// Of these, different ones as a whole disk.
    std::uint64_t distinct = 0;
    /// Runs of the reader: one for all states that it cannot tell apart.
    std::uint64_t runs = 0;
    std::uint64_t deep_runs = 0;
    std::size_t points = 0;
    std::size_t sampled_points = 0;
    std::uint64_t seen[4] = {}; ///< by Found
    /// The first state that breaks the promise: which check, and the state in words.
    std::string broken;
    std::string violation;
};

/// Stops at the first violation.
Enumeration enumerate(const Scenario& scenario, const EnumerationOptions& options);

} // namespace safering::test
