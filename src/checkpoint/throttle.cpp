#include "checkpoint/throttle.hpp"

#include <algorithm>
#include <utility>

namespace safering::checkpoint {

bool Throttle::limited() const {
    return !lifted_ && (limits_.bytes_per_second != 0 || limits_.processor_share > 0);
}

Throttle::Duration Throttle::wait(Duration now, Duration ran) {
    if (!limited())
        return {};
    using Seconds = std::chrono::duration<double>;
    if (!std::exchange(begun_, true)) {
        free_at_ = now;
        ran_ = ran;
    }
    Seconds owed{};
    if (limits_.bytes_per_second != 0)
        owed = Seconds(static_cast<double>(bytes_) / static_cast<double>(limits_.bytes_per_second));
    if (limits_.processor_share > 0)
        owed = std::max(owed, Seconds(ran - std::exchange(ran_, ran)) / limits_.processor_share);
    bytes_ = 0;
    // What was not used in an idle time is not made up for: at most a tenth of a second's worth.
    constexpr Duration credit = std::chrono::milliseconds(100);
    free_at_ = std::max(free_at_, now - credit) + std::chrono::duration_cast<Duration>(owed);
    return std::max(free_at_ - now, Duration{});
}

} // namespace safering::checkpoint
