// The order of large values: places are sorted, and the values stay where they are.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace safering::plan {

/// Places of the values in rising order, those of equal values in the order given.
template <typename Value, typename Less>
std::vector<std::uint32_t> order_of(const std::vector<Value>& values, Less&& less) {
    std::vector<std::uint32_t> order(values.size());
    std::iota(order.begin(), order.end(), 0u);
    if (!std::ranges::is_sorted(values, less))
        std::ranges::stable_sort(
            order, [&](std::uint32_t a, std::uint32_t b) { return less(values[a], values[b]); });
    return order;
}

} // namespace safering::plan
