// Four processes save into one target, and something happens to one of them.
#pragma once

#include <string>
#include <vector>

#include <sys/types.h>

#include <safering/storage_writer.hpp>

#include "../../tools/socket_ranks.hpp"
#include "../checkpoint/model.hpp"

namespace safering::test {

enum class Moment {
    planning,       ///< its plan is what the others wait for
    before_writing, ///< all know what is written where
    while_writing,  ///< its transfers are in flight
    after_writing,  ///< its results are what rank 0 waits for; rank 0: before it hears of them
    at_operation,   ///< it is about to begin its nth operation on a file
};
enum class Fate {
    killed,
    stopped, ///< until somebody lets it go on
    blind,   ///< it does not see the attempt's directory
};

struct Doom {
    std::uint32_t rank;
    Moment moment;
    Fate fate;
    ExchangeWay exchange;
    std::uint64_t operation = 0;
};

inline constexpr std::uint32_t rank_count = 4;

/// One rank's process and what it says at its end: "saved", or the error.
struct RankProcess {
    pid_t process = -1;
    int says = -1;
};

/// Begins the save of odd_model(2) into `target`.
std::vector<RankProcess> begin_doomed_save(const std::string& target, const Doom& doom);
/// What the rank says, once its process has ended; "" where it cannot say anything any more.
std::string wait_for_end(RankProcess& rank);

} // namespace safering::test
