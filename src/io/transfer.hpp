// How a request goes on after an attempt at it: the one place where short transfers are resumed and
// interrupted ones repeated. Pure: values in, a decision out.
//
// The invariant: memory, length and offset move together.
#pragma once

#include <chrono>

#include "io/backend.hpp"

namespace safering {

enum class NextStep {
    finish, ///< `completion` is the request's
    again,  ///< hand it to the backend again
    later,  ///< the same, after a pause
};

/// Prepares the first attempt.
void begin_transfer(Operation& operation);
/// Judges an attempt that has ended; `alignment()` is asked only if a transfer must be resumed.
NextStep next_step(Operation& operation, const std::function<std::uint64_t()>& alignment);
/// How long `later` is.
std::chrono::milliseconds pause(const Operation& operation);

} // namespace safering
