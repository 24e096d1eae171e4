#include <safering/rank_report.hpp>

#include <algorithm>
#include <type_traits>

#include <fmt/format.h>

#include <safering/error.hpp>
#include <safering/storage_writer.hpp>

#include "plan/text.hpp"

namespace safering {

namespace {

template <typename Field>
RankSpread spread_of(std::span<const RankReport> ranks, const char* name,
                     Field WorkReport::* field) {
    std::vector<double> values;
    RankSpread out{.field = name, .max_rank = ranks.front().rank};
    for (const RankReport& rank : ranks) {
        const auto value = static_cast<double>(rank.work.*field);
        if (value > out.max || (value == out.max && rank.rank < out.max_rank)) {
            out.max = value;
            out.max_rank = rank.rank;
        }
        values.push_back(value);
    }
    std::ranges::sort(values);
    out.min = values.front();
    out.median = (values[(values.size() - 1) / 2] + values[values.size() / 2]) / 2;
    return out;
}

std::vector<BackendRanks> backends_of(std::span<const RankReport> ranks) {
    std::vector<BackendRanks> out;
    for (const RankReport& rank : ranks) {
        auto found = std::ranges::find_if(out, [&](const BackendRanks& one) {
            return one.backend == rank.backend && one.reason == rank.reason;
        });
        if (found == out.end())
            found = out.insert(found, {rank.backend, rank.reason, {}});
        found->ranks.push_back(rank.rank);
    }
    for (BackendRanks& one : out)
        std::ranges::sort(one.ranks);
    std::ranges::sort(out, [](const BackendRanks& a, const BackendRanks& b) {
        return a.ranks.size() != b.ranks.size() ? a.ranks.size() > b.ranks.size()
                                                : a.ranks < b.ranks;
    });
    return out;
}

// One rank has but one number.
std::string row(std::string_view heading, std::size_t ranks, std::string_view min,
                std::string_view median, std::string_view max, const auto& rank) {
    return ranks == 1
               ? fmt::format("{:<16}{:>11}\n", heading, max)
               : fmt::format("{:<16}{:>11}{:>11}{:>11}{:>7}\n", heading, min, median, max, rank);
}

} // namespace

const RankSpread* RankSummary::spread(std::string_view field) const {
    const auto found = std::ranges::find(spreads, field, &RankSpread::field);
    return found == spreads.end() ? nullptr : &*found;
}

RankSummary summarise(std::span<const RankReport> ranks) {
    RankSummary out{.ranks = ranks.size()};
    if (ranks.empty())
        return out;
    for (const RankReport& rank : ranks)
        out.total += rank.work;
    WorkReport::each_field([&](const char* name, auto field) {
        out.spreads.push_back(spread_of(ranks, name, field));
    });
    out.backends = backends_of(ranks);
    return out;
}

std::string to_text(const RankSummary& summary) {
    using plan::bytes_in_words, plan::counted;
    if (summary.ranks == 0)
        return "no rank reported\n";
    const WorkReport& total = summary.total;
    std::string out = fmt::format(
        "{}: {} direct, {} cached; {} requests of {} pieces, {} retries; {} cells copied, "
        "{} not; {} digests; {} stalls\n",
        counted(summary.ranks, "rank"), bytes_in_words(total.direct_bytes),
        bytes_in_words(total.cached_bytes), total.requests, total.pieces, total.retries,
        total.copied_cells, total.uncopied_cells, total.digests, total.stalls);
    if (summary.ranks > 1)
        out += row("", summary.ranks, "min", "median", "max", "rank");
    const auto add_row = [&](const std::string& heading, const RankSpread& spread,
                             const auto& in_words) {
        out += row(heading, summary.ranks, in_words(spread.min), in_words(spread.median),
                   in_words(spread.max), spread.max_rank);
    };
    const auto in_seconds = [](double seconds) { return fmt::format("{:.3f} s", seconds); };
    const auto in_bytes = [](double bytes) {
        return bytes_in_words(static_cast<std::uint64_t>(bytes));
    };
    constexpr std::string_view seconds = "_seconds", bytes = "_bytes";
    for (const RankSpread& spread : summary.spreads) {
        std::string_view what = spread.field;
        if (what == "seconds") {
            add_row("in all", spread, in_seconds);
        } else if (spread.max == 0) {
            continue;
        } else if (what.ends_with(seconds)) {
            what.remove_suffix(seconds.size());
            add_row(fmt::format("  {}", what), spread, in_seconds);
        } else if (what.ends_with(bytes)) {
            what.remove_suffix(bytes.size());
            add_row(fmt::format("{} bytes", what), spread, in_bytes);
        }
    }
    for (const BackendRanks& one : summary.backends)
        out += fmt::format("{:<16}{}: {}\n", name(one.backend), plan::ranks_in_words(one.ranks),
                           one.reason);
    return out;
}

std::string to_text(const SaveReport& report) {
    std::string out = fmt::format(
        "{}: {} of tensors in {}, {}; prepare {:.3f} s, commit {:.3f} s\n", escaped(report.path),
        plan::bytes_in_words(report.tensor_bytes), plan::counted(report.files, "file"),
        report.replaced ? "in place of an older checkpoint" : "new", report.prepare_seconds,
        report.commit_seconds);
    if (!report.ranks.empty())
        out += to_text(summarise(report.ranks));
    for (const std::string& note : report.notes)
        out += fmt::format("note: {}\n", note);
    return out;
}

} // namespace safering
