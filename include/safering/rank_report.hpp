// What every rank did of a save, and what that comes to: whom all waited for, and who went which way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <safering/backend_kind.hpp>
#include <safering/export.hpp>
#include <safering/work_report.hpp>

namespace safering {

/// Of one rank's write_data. Seconds come to the microsecond where they came as bytes.
struct RankReport {
    std::uint32_t rank = 0;
    WorkReport work{};
    /// What carried its requests, and why that: ReactorInfo's.
    BackendKind backend = BackendKind::threads;
    std::string reason{};

    friend bool operator==(const RankReport&, const RankReport&) = default;
};

/// One number of all ranks.
struct RankSpread {
    /// A field of WorkReport, "transfer_seconds".
    std::string field{};
    double min = 0;
    /// Of an even number of ranks, the mean of the middle two.
    double median = 0;
    double max = 0;
    /// Whose the largest is: of seconds, the slowest rank. The lowest rank of several.
    std::uint32_t max_rank = 0;

    friend bool operator==(const RankSpread&, const RankSpread&) = default;
};

/// Ranks that went one way for one reason.
struct BackendRanks {
    BackendKind backend = BackendKind::threads;
    std::string reason{};
    /// Rising.
    std::vector<std::uint32_t> ranks{};

    friend bool operator==(const BackendRanks&, const BackendRanks&) = default;
};

struct RankSummary {
    std::size_t ranks = 0;
    /// Sums, and the largest of the depths.
    WorkReport total{};
    /// Every field of WorkReport, in its order; none where there is no rank.
    std::vector<RankSpread> spreads{};
    /// That of the most ranks first, else that of the lowest.
    std::vector<BackendRanks> backends{};

    /// By the name of the field; nullptr where there is none.
    SAFERING_API const RankSpread* spread(std::string_view field) const;
    friend bool operator==(const RankSummary&, const RankSummary&) = default;
};

SAFERING_API RankSummary summarise(std::span<const RankReport> ranks);

/// A table for people: totals, the phases that took time with their slowest ranks, and the backends. Lines that end in \n.
SAFERING_API std::string to_text(const RankSummary& summary);

} // namespace safering
