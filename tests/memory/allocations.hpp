// The operator new of this executable: it counts, and fails when told to.
#pragma once

#include <cstdint>

namespace safering::test::allocations {

enum class Threads {
    caller, ///< the thread that arms
    others, ///< all but that one: the library's
};

/// Makes one allocation of these threads fail: after so many others.
void fail_after(Threads threads, std::uint64_t others);
/// Ends that. Whether one has failed.
bool disarm();
/// Allocations that have not been freed.
std::int64_t living();

} // namespace safering::test::allocations
