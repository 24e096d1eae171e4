// The names in the plans of all ranks, numbered, so that what follows sorts and
// counts small integers.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <safering/plan.hpp>

namespace safering::plan {

/// Borrows the plans' strings and items.
class ItemNames {
  public:
    static constexpr std::uint32_t none = ~std::uint32_t{0};

    /// Parallel to the plans and their items.
    std::vector<std::vector<std::uint32_t>> number_of_item;
    /// By number, in order of first sight.
    std::vector<const WriteItem*> first_item;

    /// `none` where no item has the name.
    std::uint32_t find(std::string_view fqn) const;

  private:
    friend Result<ItemNames> number_names(const std::vector<SavePlan>&, const char*);

    // A hash table without nodes: a million names miss the caches once each, and cost 16 MiB.
    struct Slot {
        std::uint32_t hash = 0;
        std::uint32_t number = none;
    };
    void reserve(std::size_t names);
    // The slot of the name, or the empty one where it would be.
    std::size_t slot_of(std::string_view fqn, std::uint64_t hash) const;

    std::vector<Slot> slots_; // a power of two, at least twice the names
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
