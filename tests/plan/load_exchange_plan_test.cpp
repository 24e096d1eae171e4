#include "plan/load_exchange_plan.hpp"

#include <map>
#include <set>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "random_plans.hpp"

namespace safering::plan {
namespace {

constexpr std::uint64_t cell_bytes = 4096;
using Exchanges = std::vector<std::optional<LoadExchange>>;

LoadOffer offer_of(std::vector<FileRange> ranges, std::string endpoint = "host/a") {
    return {.endpoint = std::move(endpoint),
            .checkpoint = "c",
            .chunk_bytes = cell_bytes,
            .ranges = std::move(ranges)};
}

Exchanges planned(const std::vector<LoadOffer>& offers,
                  ExchangeWay way = ExchangeWay::process_memory) {
    std::vector<const LoadOffer*> pointers;
    for (const LoadOffer& offer : offers)
        pointers.push_back(offer.endpoint.empty() ? nullptr : &offer);
    return plan_load_exchange(pointers, {.way = way, .id = "id"});
}

bool nothing(const Exchanges& exchanges) {
    return std::ranges::none_of(exchanges, [](const auto& one) { return one.has_value(); });
}

// Blocks are small enough to count: bytes of a cell that a rank asks for.
std::set<std::uint64_t> bytes_of(const std::vector<FileRange>& ranges, std::uint32_t file,
                                 std::uint64_t cell) {
    std::set<std::uint64_t> bytes;
    for (const FileRange& one : ranges) {
        const ByteRange part = one.range.clip({cell * cell_bytes, (cell + 1) * cell_bytes});
        for (std::uint64_t at = part.begin; one.file == file && at < part.end; at += 64)
            bytes.insert(at);
    }
    return bytes;
}

// What every exchange must keep to. Ranges are in units of 64 bytes.
void check(const std::vector<LoadOffer>& offers, const Exchanges& exchanges, std::uint32_t files,
           std::uint64_t cells) {
    for (std::uint32_t file = 0; file < files; ++file)
        for (std::uint64_t cell = 0; cell < cells; ++cell) {
            std::map<std::uint32_t, const SharedCells*> part; // of each rank
            for (std::uint32_t rank = 0; rank < exchanges.size(); ++rank) {
                if (!exchanges[rank])
                    continue;
                for (const SharedCells& one : exchanges[rank]->cells)
                    if (one.file == file && one.first_cell <= cell && cell < one.last_cell) {
                        ASSERT_TRUE(part.emplace(rank, &one).second) << "twice";
                    }
            }
            std::map<std::uint32_t, std::set<std::uint64_t>> read; // of each owner
            std::map<std::uint32_t, std::set<std::uint32_t>> takers;
            for (const auto& [rank, one] : part) {
                ASSERT_TRUE(part.contains(one->owner));
                ASSERT_EQ(part[one->owner]->owner, one->owner);
                if (one->owner == rank) {
                    read[rank] = bytes_of(exchanges[rank]->reads, file, cell);
                    ASSERT_FALSE(one->takers.empty());
                    for (const std::uint32_t taker : one->takers)
                        ASSERT_TRUE(part.contains(taker));
                } else {
                    ASSERT_TRUE(one->takers.empty());
                    takers[one->owner].insert(rank);
                }
            }
            for (const auto& [rank, one] : part) {
                const auto& all = read[one->owner];
                const auto wanted = bytes_of(offers[rank].ranges, file, cell);
                ASSERT_FALSE(wanted.empty());
                ASSERT_TRUE(std::ranges::includes(all, wanted)) << "not read";
                if (one->owner == rank) {
                    ASSERT_EQ(std::set<std::uint32_t>(one->takers.begin(), one->takers.end()),
                              takers[rank]);
                }
            }
        }
    for (std::uint32_t rank = 0; rank < exchanges.size(); ++rank) {
        if (!exchanges[rank])
            continue;
        ASSERT_EQ(plan::checkpoint_of(*exchanges[rank]), offers[rank].checkpoint);
        std::set<std::uint32_t> partners{rank}, named;
        for (const SharedCells& one : exchanges[rank]->cells) {
            partners.insert(one.takers.begin(), one.takers.end());
            if (one.owner != rank)
                partners.insert(one.owner);
        }
        for (const ExchangePeer& peer : exchanges[rank]->peers) {
            named.insert(peer.rank);
            ASSERT_EQ(peer.endpoint, offers[peer.rank].endpoint);
        }
        ASSERT_EQ(partners, named);
        LoadPlan plan{.items = {}, .offer = offers[rank], .exchange = exchanges[rank]};
        ASSERT_EQ(load_plan_from_bytes(to_bytes(plan)).value(), plan);
    }
}

TEST(LoadExchangePlan, ReplicasAreReadOnceAndSharedOutEvenly) {
    for (const std::uint32_t ranks : {2u, 3u, 8u}) {
        std::vector<LoadOffer> offers(ranks, offer_of({{0, {64, 60 * cell_bytes}}}));
        for (std::uint32_t rank = 0; rank < ranks; ++rank)
            offers[rank].endpoint += std::to_string(rank);
        const Exchanges exchanges = planned(offers);
        check(offers, exchanges, 1, 60);
        std::uint64_t sum = 0;
        for (const auto& exchange : exchanges) {
            ASSERT_TRUE(exchange.has_value());
            std::uint64_t bytes = 0;
            for (const FileRange& read : exchange->reads)
                bytes += read.range.size();
            EXPECT_NEAR(double(bytes), 60.0 * cell_bytes / ranks, cell_bytes);
            sum += bytes;
        }
        EXPECT_EQ(sum, 60 * cell_bytes - 64);
    }
}

TEST(LoadExchangePlan, OneThatReadsMuchByItselfGetsLess) {
    const std::vector<LoadOffer> offers{
        offer_of({{0, {0, 8 * cell_bytes}}, {1, {0, 8 * cell_bytes}}}),
        offer_of({{0, {0, 8 * cell_bytes}}}, "host/b")};
    const Exchanges exchanges = planned(offers);
    check(offers, exchanges, 2, 8);
    for (const SharedCells& cells : exchanges[0]->cells)
        EXPECT_EQ(cells.owner, 1u);
}

TEST(LoadExchangePlan, DisjointBytesChangeNothing) {
    EXPECT_TRUE(nothing(
        planned({offer_of({{0, {0, 6208}}}), offer_of({{0, {6208, 5 * cell_bytes}}}, "host/b")})));
    EXPECT_TRUE(nothing(planned(
        {offer_of({{0, {0, 8 * cell_bytes}}}), offer_of({{1, {0, 8 * cell_bytes}}}, "host/b")})));
    // Interleaved in one cell.
    EXPECT_TRUE(nothing(planned(
        {offer_of({{0, {0, 64}}, {0, {128, 192}}}), offer_of({{0, {64, 128}}}, "host/b")})));
}

TEST(LoadExchangePlan, OnlyWhatIsTheSame) {
    const auto two = [](auto change) {
        std::vector<LoadOffer> offers{offer_of({{0, {0, 8 * cell_bytes}}}),
                                      offer_of({{0, {0, 8 * cell_bytes}}}, "host/b")};
        change(offers[1]);
        return nothing(planned(offers));
    };
    EXPECT_FALSE(two([](LoadOffer&) {}));
    EXPECT_TRUE(two([](LoadOffer& offer) { offer.endpoint = "other/b"; }));
    EXPECT_TRUE(two([](LoadOffer& offer) { offer.endpoint = "no endpoint"; }));
    EXPECT_TRUE(two([](LoadOffer& offer) { offer.endpoint.clear(); }));
    EXPECT_TRUE(two([](LoadOffer& offer) { offer.checkpoint = "d"; }));
    EXPECT_TRUE(two([](LoadOffer& offer) { offer.chunk_bytes *= 2; }));
    EXPECT_TRUE(two([](LoadOffer& offer) { offer.ranges.clear(); }));
}

TEST(LoadExchangePlan, AutomaticallyWhereItPays) {
    std::vector<LoadOffer> offers{offer_of({{0, {0, 64 << 20}}}),
                                  offer_of({{0, {0, 64 << 20}}}, "host/b")};
    EXPECT_TRUE(nothing(planned(offers, ExchangeWay::automatic))); // 4 KiB a word
    for (LoadOffer& offer : offers)
        offer.chunk_bytes = 4 << 20;
    EXPECT_FALSE(nothing(planned(offers, ExchangeWay::automatic)));
    EXPECT_TRUE(nothing(planned(offers, ExchangeWay::off)));
    offers[1].ranges = {{0, {(4 << 20) - 4096, 4 << 20}}}; // a block that both want
    EXPECT_TRUE(nothing(planned(offers, ExchangeWay::automatic)));
}

RC_GTEST_PROP(LoadExchangePlan, HoldsForAnyOffers, (std::uint64_t seed)) {
    oracle::Random random(seed);
    constexpr std::uint32_t files = 3;
    constexpr std::uint64_t cells = 12;
    std::vector<LoadOffer> offers;
    for (std::uint64_t rank = 0, ranks = 1 + random.below(6); rank < ranks; ++rank) {
        LoadOffer offer =
            offer_of({}, "host" + std::to_string(random.below(2)) + "/" + std::to_string(rank));
        for (std::uint32_t file = 0; file < files; ++file)
            for (std::uint64_t at = random.below(cell_bytes / 64); at < cells * cell_bytes / 64;) {
                const std::uint64_t end =
                    std::min(cells * cell_bytes / 64, at + 1 + random.below(2 * cell_bytes / 64));
                if (!random.chance(3))
                    offer.ranges.push_back({file, {at * 64, end * 64}});
                at = end + 1 + random.below(cell_bytes / 64);
            }
        offers.push_back(std::move(offer));
    }
    check(offers, planned(offers), files, cells);
    RC_ASSERT(!testing::Test::HasFatalFailure());
}

// What no planner makes is refused, or comes back as it was.
TEST(LoadExchangePlan, BytesThatAreNoPlanAreRefused) {
    const auto refused = [](auto change) {
        LoadPlan plan;
        plan.offer = offer_of({{0, {0, 64}}, {1, {64, 128}}});
        plan.exchange = LoadExchange{.id = "id", .chunk_bytes = cell_bytes};
        plan.exchange->cells = {{0, 1, 2, 5, {3}}, {2, 0, 0, 1, {}}};
        change(plan);
        return !load_plan_from_bytes(to_bytes(plan)).has_value();
    };
    EXPECT_FALSE(refused([](LoadPlan&) {}));
    EXPECT_TRUE(refused([](LoadPlan& plan) { plan.offer->chunk_bytes = 4097; }));
    EXPECT_TRUE(refused([](LoadPlan& plan) { plan.exchange->chunk_bytes = 0; }));
    EXPECT_TRUE(refused([](LoadPlan& plan) { plan.offer->ranges[1].range.end = 64; }));
    EXPECT_TRUE(refused([](LoadPlan& plan) {
        plan.offer->ranges[1].file = 0;
        plan.offer->ranges[1].range = {32, 96};
    }));
    EXPECT_TRUE(refused([](LoadPlan& plan) { plan.offer->ranges[1].range.end = ~0ull; }));
    EXPECT_TRUE(refused([](LoadPlan& plan) { plan.exchange->cells[1].last_cell = 0; }));
    EXPECT_TRUE(refused([](LoadPlan& plan) { plan.exchange->cells[1].last_cell = 1ull << 60; }));
    EXPECT_TRUE(refused([](LoadPlan& plan) { plan.exchange->way = static_cast<ExchangeWay>(9); }));
}

} // namespace
} // namespace safering::plan
