// Which cells of a save's files one rank writes for others, and who. Pure.
//
// A cell that several ranks of one host touch is exchanged where that is cheaper than what it would take
// otherwise: runs too short for direct I/O, written through the page cache.
#pragma once

#include <vector>

#include <safering/plan.hpp>

#include "plan/layout.hpp"

namespace safering::plan {

struct ExchangeOptions {
    ExchangeWay way = ExchangeWay::automatic;
    std::uint64_t chunk_bytes = 0;
};

/// One a plan, with files numbered as in `layout`, a full one; a rank that exchanges nothing has none. `plans`
/// are those of the layout, rank i at place i. Forced ways exchange every cell that they can. Cells that ranks of
/// several hosts touch, or one without an endpoint, are left alone. O(n log n) in items and in cells touched.
std::vector<std::optional<ExchangePlan>> plan_exchange(const std::vector<SavePlan>& plans,
                                                       const Layout& layout,
                                                       const ExchangeOptions& options);

} // namespace safering::plan
