// Sorting large values by key: places are sorted, and each value is moved once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

namespace safering::plan {

/// Stable. Does nothing where the values are in order, as those of a state dict often are.
template <typename Value, typename Key>
void sort_by(std::vector<Value>& values, Key&& key) {
    const auto less = [&](const Value& a, const Value& b) { return key(a) < key(b); };
    if (std::is_sorted(values.begin(), values.end(), less))
        return;
    std::vector<std::uint32_t> places(values.size());
    std::iota(places.begin(), places.end(), 0u);
    std::stable_sort(places.begin(), places.end(),
                     [&](std::uint32_t a, std::uint32_t b) { return less(values[a], values[b]); });
    std::vector<Value> sorted;
    sorted.reserve(values.size());
    for (const std::uint32_t place : places)
        sorted.push_back(std::move(values[place]));
    values = std::move(sorted);
}

} // namespace safering::plan
