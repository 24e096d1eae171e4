#include "plan/item_names.hpp"

#include <algorithm>
#include <bit>
#include <functional>
#include <numeric>
#include <optional>
#include <string_view>

#include <fmt/format.h>
#include <xxhash.h>

#include "name_order.hpp"
#include "plan/text.hpp"

namespace safering::plan {

namespace {

// Names -> numbers, without nodes: a million names miss the caches once each, and cost 16 MiB.
class NameTable {
  public:
    /// `items` grows as the table does: the number of a name is its place there.
    NameTable(std::size_t names, const std::vector<const WriteItem*>& items)
        : slots_(std::bit_ceil(2 * names + 1)), items_(items) {}

    /// The number of the item's name, or the next one.
    std::uint32_t add(const WriteItem& item) {
        const std::uint64_t hash = XXH3_64bits(item.fqn.data(), item.fqn.size());
        const std::size_t mask = slots_.size() - 1;
        const auto high = static_cast<std::uint32_t>(hash >> 32);
        std::size_t at = hash & mask;
        while (slots_[at].number != none &&
               (slots_[at].hash != high || items_[slots_[at].number]->fqn != item.fqn))
            at = (at + 1) & mask;
        if (slots_[at].number == none)
            slots_[at] = {high, static_cast<std::uint32_t>(items_.size())};
        return slots_[at].number;
    }

  private:
    static constexpr std::uint32_t none = ~std::uint32_t{0};
    struct Slot {
        std::uint32_t hash = 0;
        std::uint32_t number = none;
    };
    std::vector<Slot> slots_; // a power of two, at least twice the names
    const std::vector<const WriteItem*>& items_;
};

std::unexpected<Error> disagreement(const WriteItem& first, const SavePlan& plan,
                                    const WriteItem& item, const char* operation) {
    auto error = fail(Errc::plan_shape_mismatch, operation,
                      fmt::format("expected {} {} as in another item of the tensor, found {} {} in "
                                  "the plan of rank {}",
                                  name(first.dtype), in_words(first.size), name(item.dtype),
                                  in_words(item.size), plan.rank));
    error.error().tensor = item.fqn;
    return error;
}

// From order of first sight to order of the names.
void sort(ItemNames& names) {
    std::vector<std::string_view> fqns;
    fqns.reserve(names.first_item.size());
    for (const WriteItem* item : names.first_item)
        fqns.push_back(item->fqn);
    if (std::ranges::is_sorted(fqns))
        return;
    const std::vector<std::uint32_t> order = name_order(fqns);
    std::vector<std::uint32_t> number_of(order.size());
    std::vector<const WriteItem*> first_item(order.size());
    for (std::uint32_t number = 0; number < order.size(); ++number) {
        number_of[order[number]] = number;
        first_item[number] = names.first_item[order[number]];
    }
    names.first_item = std::move(first_item);
    for (auto& numbers : names.number_of_item)
        for (std::uint32_t& number : numbers)
            number = number_of[number];
}

// One plan whose names rise, as the planners here make them, needs no table: the numbers are the places.
std::optional<ItemNames> number_rising(const std::vector<SavePlan>& plans) {
    if (plans.size() != 1)
        return std::nullopt;
    const std::vector<WriteItem>& items = plans.front().items;
    if (std::ranges::adjacent_find(items, std::ranges::greater_equal(), &WriteItem::fqn) !=
        items.end())
        return std::nullopt;
    ItemNames names;
    auto& numbers = names.number_of_item.emplace_back(items.size());
    std::iota(numbers.begin(), numbers.end(), 0u);
    names.first_item.reserve(items.size());
    for (const WriteItem& item : items)
        names.first_item.push_back(&item);
    return names;
}

} // namespace

Result<ItemNames> number_names(const std::vector<SavePlan>& plans, const char* operation) {
    std::size_t items = 0;
    for (const SavePlan& plan : plans)
        items += plan.items.size();
    SAFERING_ASSERT(items < ~std::uint32_t{0});
    if (auto rising = number_rising(plans))
        return std::move(*rising);
    ItemNames names;
    names.number_of_item.reserve(plans.size());
    NameTable table(items, names.first_item);
    for (const SavePlan& plan : plans) {
        auto& numbers = names.number_of_item.emplace_back();
        numbers.reserve(plan.items.size());
        for (const WriteItem& item : plan.items) {
            const std::uint32_t number = table.add(item);
            if (number == names.first_item.size())
                names.first_item.push_back(&item);
            const WriteItem& first = *names.first_item[number];
            if (first.dtype != item.dtype || first.size != item.size)
                return disagreement(first, plan, item, operation);
            numbers.push_back(number);
        }
    }
    sort(names);
    return names;
}

ItemsByName group_by_name(const ItemNames& names) {
    ItemsByName groups;
    groups.begin.resize(names.first_item.size() + 1);
    for (const auto& numbers : names.number_of_item)
        for (const std::uint32_t number : numbers)
            ++groups.begin[number + 1];
    for (std::size_t n = 1; n < groups.begin.size(); ++n)
        groups.begin[n] += groups.begin[n - 1];
    groups.references.resize(groups.begin.back());
    std::vector<std::size_t> next(groups.begin.begin(), groups.begin.end() - 1);
    for (std::size_t p = 0; p < names.number_of_item.size(); ++p)
        for (std::size_t i = 0; i < names.number_of_item[p].size(); ++i)
            groups.references[next[names.number_of_item[p][i]]++] = {static_cast<std::uint32_t>(p),
                                                                     static_cast<std::uint32_t>(i)};
    return groups;
}

} // namespace safering::plan
