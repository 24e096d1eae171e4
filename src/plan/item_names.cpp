#include "plan/item_names.hpp"

#include <bit>

#include <fmt/format.h>
#include <xxhash.h>

#include "plan/text.hpp"

namespace safering::plan {

namespace {

std::uint64_t hash_of(std::string_view fqn) {
    return XXH3_64bits(fqn.data(), fqn.size());
}

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

} // namespace

void ItemNames::reserve(std::size_t names) {
    slots_.resize(std::bit_ceil(2 * names + 1));
}

std::size_t ItemNames::slot_of(std::string_view fqn, std::uint64_t hash) const {
    const std::size_t mask = slots_.size() - 1;
    const auto high = static_cast<std::uint32_t>(hash >> 32);
    std::size_t at = hash & mask;
    while (slots_[at].number != none &&
           (slots_[at].hash != high || first_item[slots_[at].number]->fqn != fqn))
        at = (at + 1) & mask;
    return at;
}

std::uint32_t ItemNames::find(std::string_view fqn) const {
    return slots_.empty() ? none : slots_[slot_of(fqn, hash_of(fqn))].number;
}

Result<ItemNames> number_names(const std::vector<SavePlan>& plans, const char* operation) {
    ItemNames names;
    names.number_of_item.reserve(plans.size());
    std::size_t items = 0;
    for (const SavePlan& plan : plans)
        items += plan.items.size();
    SAFERING_ASSERT(items < ItemNames::none);
    names.reserve(items);
    for (const SavePlan& plan : plans) {
        auto& numbers = names.number_of_item.emplace_back();
        numbers.reserve(plan.items.size());
        for (const WriteItem& item : plan.items) {
            const std::uint64_t hash = hash_of(item.fqn);
            ItemNames::Slot& slot = names.slots_[names.slot_of(item.fqn, hash)];
            if (slot.number == ItemNames::none) {
                slot = {static_cast<std::uint32_t>(hash >> 32),
                        static_cast<std::uint32_t>(names.first_item.size())};
                names.first_item.push_back(&item);
            }
            const WriteItem& first = *names.first_item[slot.number];
            if (first.dtype != item.dtype || first.size != item.size)
                return disagreement(first, plan, item, operation);
            numbers.push_back(slot.number);
        }
    }
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
