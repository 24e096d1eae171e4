// The order of large values: places are sorted, and the values stay where they are.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

#include "name_order.hpp"

namespace safering::plan {

/// Places of the values in rising order of their names; of equal names as `less` has it, and of values equal in
/// that too, in the order given.
template <typename Value, typename Name, typename Less>
std::vector<std::uint32_t> order_by_name(const std::vector<Value>& values, Name&& name_of,
                                         Less&& less) {
    std::vector<std::string_view> names;
    names.reserve(values.size());
    for (const Value& value : values)
        names.push_back(name_of(value));
    std::vector<std::uint32_t> order = name_order(names);
    for (auto first = order.begin(); first != order.end();) {
        const auto last = std::find_if(first + 1, order.end(), [&](std::uint32_t place) {
            return names[place] != names[*first];
        });
        if (last - first > 1)
            std::stable_sort(first, last, [&](std::uint32_t a, std::uint32_t b) {
                return less(values[a], values[b]);
            });
        first = last;
    }
    return order;
}

} // namespace safering::plan
