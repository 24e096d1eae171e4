// The operator new of this executable: it counts, and fails when told to.
#pragma once

#include <cstdint>

namespace safering::test::allocations {

enum class Threads {
    caller, ///< the thread that arms
    all,
};

struct Failing {
    /// So many others succeed first.
    std::uint64_t after = 0;
    /// All that follow fail too.
    bool for_good = false;
};

/// Makes allocations of these threads fail.
void fail(Threads threads, Failing failing);
/// Ends that. Whether one has failed.
bool disarm();
/// Allocations since fail() that could have failed.
std::uint64_t count();
/// In between this thread's are neither counted nor failed.
void begin_exemption();
void end_exemption();
/// Allocations that have not been freed.
std::int64_t living();

} // namespace safering::test::allocations
