// Sorts by eight bytes at a time: names whose first eight are equal are sorted by the next eight. Comparing
// whole names reads what they share again and again, out of memory that no cache holds (measured: a third
// of the time for a million names in any order).
#include "name_order.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>
#include <tuple>
#include <utility>

#include <safering/error.hpp>

namespace safering {

namespace {

// So many names, or fewer, are compared as they are.
constexpr std::size_t few_names = 16;

struct Key {
    std::uint64_t bytes; // eight of the name, the first the most significant; zeros behind its end
    std::uint32_t used;  // how many of them the name has; more than eight where it goes on
    std::uint32_t place;
};
constexpr std::uint32_t width = sizeof(Key::bytes);

// Keys [begin, end), whose names agree in their first `depth` bytes.
struct Group {
    std::size_t begin;
    std::size_t end;
    std::size_t depth;
};

void look_at(std::string_view name, std::size_t depth, Key& key) {
    key.used = static_cast<std::uint32_t>(std::min<std::size_t>(name.size() - depth, width + 1));
    key.bytes = 0;
    if (key.used != 0)
        std::memcpy(&key.bytes, name.data() + depth, std::min(key.used, width));
    if constexpr (std::endian::native == std::endian::little)
        key.bytes = std::byteswap(key.bytes);
}

} // namespace

std::vector<std::uint32_t> name_order(std::span<const std::string_view> names) {
    SAFERING_ASSERT(names.size() <= ~std::uint32_t{0});
    std::vector<std::uint32_t> order(names.size());
    std::iota(order.begin(), order.end(), 0u);
    if (std::ranges::is_sorted(names))
        return order;
    std::vector<Key> keys(names.size());
    for (const std::uint32_t place : order)
        keys[place].place = place;
    std::vector<Group> groups{{0, names.size(), 0}};
    while (!groups.empty()) {
        const auto [begin, end, group_depth] = groups.back();
        const auto depth = group_depth; // clang 15 captures no binding
        groups.pop_back();
        const std::span<Key> group(keys.data() + begin, end - begin);
        if (group.size() <= few_names) {
            std::ranges::sort(group, {}, [&](const Key& key) {
                return std::pair(names[key.place].substr(depth), key.place);
            });
            continue;
        }
        for (Key& key : group)
            look_at(names[key.place], depth, key);
        // What all names begin with leaves them in their order.
        const auto by_bytes = [](const Key& key) {
            return std::tuple(key.bytes, key.used, key.place);
        };
        if (!std::ranges::is_sorted(group, {}, by_bytes))
            std::ranges::sort(group, {}, by_bytes);
        for (std::size_t first = 0, last = 0; first < group.size(); first = last) {
            const Key& key = group[first];
            while (last < group.size() && group[last].bytes == key.bytes &&
                   group[last].used == key.used)
                ++last;
            if (key.used > width && last - first > 1)
                groups.push_back({begin + first, begin + last, depth + width});
        }
    }
    std::ranges::transform(keys, order.begin(), &Key::place);
    return order;
}

} // namespace safering
