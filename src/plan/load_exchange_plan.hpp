// Which cells of a checkpoint one rank reads for others of its host. Pure.
//
// A cell that several ranks would read, in part the same bytes of it, is given to one of them where that is cheaper
// than to read these bytes more than once.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <safering/plan.hpp>

namespace safering::plan {

struct LoadExchangeOptions {
    ExchangeWay way = ExchangeWay::automatic;
    /// 32 hex digits. With the checkpoint of its offers it is the id of an exchange.
    std::string id;
};

/// What the offers of an exchange said of their checkpoint; empty for an id that says nothing.
std::string_view checkpoint_of(const LoadExchange& exchange);

/// One a rank; none for one that exchanges nothing, or offers nothing. Ranks exchange that are on one host and have
/// opened the same checkpoint in cells of one size. Forced ways exchange every cell of which two ranks would read
/// the same byte. O(n log n) in ranges and in cells.
std::vector<std::optional<LoadExchange>>
plan_load_exchange(const std::vector<const LoadOffer*>& offers, const LoadExchangeOptions& options);

} // namespace safering::plan
