#include "plan/item_names.hpp"

#include <limits>

#include <fmt/format.h>

#include "plan/text.hpp"

namespace safering::plan {

Result<ItemNames> number_names(const std::vector<SavePlan>& plans, const char* operation) {
    ItemNames names;
    names.number_of_item.reserve(plans.size());
    std::size_t items = 0;
    for (const SavePlan& plan : plans)
        items += plan.items.size();
    SAFERING_ASSERT(items < std::numeric_limits<std::uint32_t>::max());
    names.number_of.reserve(items);
    for (const SavePlan& plan : plans) {
        auto& numbers = names.number_of_item.emplace_back();
        numbers.reserve(plan.items.size());
        for (const WriteItem& item : plan.items) {
            const auto next = static_cast<std::uint32_t>(names.first_item.size());
            const auto [at, is_new] = names.number_of.try_emplace(item.fqn, next);
            if (is_new)
                names.first_item.push_back(&item);
            const WriteItem& first = *names.first_item[at->second];
            if (first.dtype != item.dtype || first.size != item.size) {
                auto error = fail(
                    Errc::plan_shape_mismatch, operation,
                    fmt::format("expected {} {} as in another item of the tensor, found {} {} in "
                                "the plan of rank {}",
                                name(first.dtype), in_words(first.size), name(item.dtype),
                                in_words(item.size), plan.rank));
                error.error().tensor = item.fqn;
                return error;
            }
            numbers.push_back(at->second);
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
