// The names in the plans of all ranks, numbered, so that what follows sorts and
// counts small integers.
#pragma once

#include <cstdint>
#include <vector>

#include <safering/plan.hpp>

namespace safering::plan {

/// Borrows the plans' items.
struct ItemNames {
    /// Parallel to the plans and their items.
    std::vector<std::vector<std::uint32_t>> number_of_item;
    /// By number; the names rise.
    std::vector<const WriteItem*> first_item;
};

/// Errors: plan_shape_mismatch where items of one name disagree on dtype or size.
Result<ItemNames> number_names(const std::vector<SavePlan>& plans, const char* operation);

/// An item of all plans: plan and item within it.
struct ItemReference {
    std::uint32_t plan;
    std::uint32_t item;
};

/// All items by name: those of name n are references[begin[n]] up to references[begin[n + 1]], in
/// order of the plans.
struct ItemsByName {
    std::vector<ItemReference> references;
    std::vector<std::size_t> begin;
};
ItemsByName group_by_name(const ItemNames& names);

} // namespace safering::plan
