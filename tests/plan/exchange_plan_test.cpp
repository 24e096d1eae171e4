#include "plan/exchange_plan.hpp"

#include <map>
#include <set>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "plan/box.hpp"

namespace safering::plan {
namespace {

constexpr std::uint64_t chunk = 4096;

struct Tensor {
    std::string fqn;
    Shape size;
};

// Each tensor in about equal parts along a dimension, all ranks on the hosts given.
std::vector<SavePlan> plans_of(const std::vector<Tensor>& tensors, std::size_t dimension,
                               const std::vector<std::string>& hosts) {
    std::vector<SavePlan> plans(hosts.size());
    for (std::uint32_t rank = 0; rank < plans.size(); ++rank) {
        plans[rank].rank = rank;
        plans[rank].endpoint = hosts[rank].empty() ? "" : hosts[rank] + "/" + std::to_string(rank);
        for (const Tensor& tensor : tensors) {
            const std::uint64_t length = tensor.size[dimension];
            Shape offsets(tensor.size.size(), 0), sizes = tensor.size;
            offsets[dimension] = length * rank / plans.size();
            sizes[dimension] = length * (rank + 1) / plans.size() - offsets[dimension];
            plans[rank].items.push_back(
                {tensor.fqn, WriteItemType::shard, Dtype::f32, {offsets, sizes}, tensor.size});
        }
    }
    return plans;
}

struct Planned {
    std::vector<SavePlan> plans;
    Layout layout;
    std::vector<std::optional<ExchangePlan>> exchanges;
};

Planned planned(std::vector<SavePlan> plans, ExchangeWay way = ExchangeWay::automatic,
                std::uint64_t chunk_bytes = chunk) {
    Layout layout = plan_layout(plans, {}).value();
    auto exchanges = plan_exchange(plans, layout, {.way = way, .chunk_bytes = chunk_bytes});
    return {std::move(plans), std::move(layout), std::move(exchanges)};
}

bool nothing(const Planned& planned) {
    return std::ranges::none_of(planned.exchanges,
                                [](const auto& exchange) { return exchange.has_value(); });
}

// What every exchange must keep to.
void check(const Planned& planned) {
    std::map<std::pair<std::uint32_t, std::uint64_t>, std::uint32_t> owner_of; // (file, cell)
    std::set<std::pair<std::uint32_t, std::uint32_t>> sources, takers;         // (who, whose)
    for (std::uint32_t rank = 0; rank < planned.exchanges.size(); ++rank) {
        if (!planned.exchanges[rank])
            continue;
        const ExchangePlan& exchange = *planned.exchanges[rank];
        for (const ExchangedCells& cells : exchange.cells)
            for (std::uint64_t cell = cells.first_cell; cell < cells.last_cell; ++cell)
                ASSERT_EQ(owner_of.emplace(std::pair(cells.file, cell), cells.owner).first->second,
                          cells.owner);
        for (const auto& source : exchange.sources)
            sources.emplace(source.rank, rank);
        for (const auto& taker : exchange.takers)
            takers.emplace(rank, taker.rank);
    }
    ASSERT_EQ(sources, takers);
    // Every byte of an exchanged cell is its owner's, or of an item that the owner was handed.
    for (std::uint32_t rank = 0; rank < planned.plans.size(); ++rank)
        for (std::uint32_t i = 0; i < planned.plans[rank].items.size(); ++i) {
            const WriteItem& item = planned.plans[rank].items[i];
            const ItemPlacement& place = planned.layout.placements[rank][i];
            const FileBox box =
                FileBox::make(item.dtype, item.size, item.chunk.offsets, item.chunk.sizes).value();
            std::set<std::uint32_t> owners;
            box.for_each_run(box.hull(), [&](ByteRange run) {
                run = run.shifted(place.tensor_begin);
                for (std::uint64_t cell = run.begin / chunk; cell * chunk < run.end; ++cell)
                    if (const auto found = owner_of.find({place.file, cell});
                        found != owner_of.end() && found->second != rank)
                        owners.insert(found->second);
            });
            for (std::uint32_t other = 0; other < planned.plans.size(); ++other) {
                std::size_t handed = 0;
                if (planned.exchanges[other])
                    handed = static_cast<std::size_t>(std::ranges::count_if(
                        planned.exchanges[other]->items, [&](const ForeignItem& foreign) {
                            return foreign.rank == rank && foreign.item == i;
                        }));
                ASSERT_EQ(handed, owners.count(other))
                    << "item " << i << " of rank " << rank << " at rank " << other;
            }
        }
}

TEST(ExchangePlan, InnerShardsAreSharedOutEvenly) {
    for (const std::uint32_t ranks : {2u, 3u, 8u}) {
        const Planned p = planned(plans_of({{"a", {256, 512}}, {"b", {64, 64}}}, 1,
                                           std::vector<std::string>(ranks, "host")),
                                  ExchangeWay::process_memory);
        check(p);
        std::vector<std::uint64_t> cells(ranks);
        for (const ExchangedCells& region : p.exchanges[0]->cells)
            cells[region.owner] += region.last_cell - region.first_cell;
        const auto [least, most] = std::ranges::minmax(cells);
        EXPECT_GT(least, 0u) << ranks << ": " << testing::PrintToString(cells);
        EXPECT_LE(most - least, 2u) << ranks;
    }
}

TEST(ExchangePlan, SmallTensorsOfSeveralRanksAreExchanged) {
    std::vector<Tensor> tensors;
    for (int t = 0; t < 200; ++t)
        tensors.push_back({"t" + std::to_string(1000 + t), {16, 8}});
    const Planned p = planned(plans_of(tensors, 0, {"host", "host"}));
    check(p);
    EXPECT_FALSE(nothing(p));
}

TEST(ExchangePlan, NothingToGain) {
    const std::vector<Tensor> large{{"a", {1024, 1024}}};
    EXPECT_TRUE(nothing(planned(plans_of(large, 0, {"h", "h"}), ExchangeWay::automatic, 1 << 20)));
    EXPECT_TRUE(nothing(planned(plans_of(large, 1, {"h"}))));
    EXPECT_TRUE(nothing(planned(plans_of(large, 1, {"h", "h"}), ExchangeWay::off)));
}

TEST(ExchangePlan, RanksOfOtherHostsWriteTheirOwn) {
    const std::vector<Tensor> tensors{{"a", {64, 512}}};
    EXPECT_TRUE(nothing(planned(plans_of(tensors, 1, {"", ""}))));
    EXPECT_TRUE(nothing(planned(plans_of(tensors, 1, {"one", "two"}))));
    EXPECT_TRUE(nothing(planned(plans_of(tensors, 1, {"one", "one", "two"}))));
    // Along the rows the hosts part, and ranks of one share cells.
    auto plans = plans_of({{"a", {64, 512}}}, 1, {"one", "one"});
    auto others = plans_of({{"b", {64, 512}}}, 1, {"two", "two"});
    for (std::uint32_t rank = 0; rank < 2; ++rank) {
        others[rank].rank = rank + 2;
        plans.push_back(others[rank]);
    }
    const Planned p = planned(plans);
    check(p);
    for (std::uint32_t rank = 0; rank < 4; ++rank)
        for (const auto& source : p.exchanges[rank]->sources)
            EXPECT_EQ(source.rank / 2, rank / 2);
}

RC_GTEST_PROP(ExchangePlan, HoldsForAnySharding, ()) {
    const auto ranks = *rc::gen::inRange<std::size_t>(1, 6);
    const auto dimension = *rc::gen::inRange<std::size_t>(0, 3);
    std::vector<Tensor> tensors;
    const auto count = *rc::gen::inRange(1, 12);
    for (int t = 0; t < count; ++t) {
        Shape size;
        for (int d = 0; d < 3; ++d)
            size.push_back(*rc::gen::inRange<std::uint64_t>(0, 30));
        tensors.push_back({"t" + std::to_string(t), size});
    }
    std::vector<std::string> hosts;
    for (std::size_t r = 0; r < ranks; ++r)
        hosts.push_back(*rc::gen::element<std::string>("one", "one", "one", "two", ""));
    const auto way = *rc::gen::element(ExchangeWay::automatic, ExchangeWay::shared_memory);
    check(planned(plans_of(tensors, dimension, hosts), way));
    RC_ASSERT(!testing::Test::HasFatalFailure());
}

TEST(ExchangePlan, TravelsAsBytes) {
    Planned p = planned(plans_of({{"a", {64, 512}}}, 1, {"host", "host"}));
    SavePlan& plan = p.plans[1];
    plan.storage = StoragePlan{.attempt = std::string(32, 'a'), .chunk_bytes = chunk};
    plan.storage->files.push_back(p.layout.files[0].file);
    plan.storage->placements = p.layout.placements[1];
    plan.storage->exchange = p.exchanges[1];
    plan.storage->exchange->positions = {0};
    EXPECT_EQ(save_plan_from_bytes(to_bytes(plan)).value(), plan);

    WriteResults results{.rank = 1, .attempt = "x", .files = {"f"}};
    results.items.push_back({.index = {"a", {0, 256}}, .handed_over = 3});
    results.pieces.push_back({.rank = 0, .item = 4, .cell = 2, .digest = ~std::uint64_t{0}});
    results.exchange = {.process_memory_bytes = 5, .shared_memory_bytes = 6, .reason = "why"};
    EXPECT_EQ(write_results_from_bytes(to_bytes(results)).value(), results);
}

TEST(FileBox, BytesBeforeCountsRuns) {
    const FileBox box = FileBox::make(Dtype::u8, {5, 7, 6}, {1, 2, 1}, {3, 4, 2}).value();
    std::vector<bool> inside(5 * 7 * 6);
    box.for_each_run(box.hull(), [&](ByteRange run) {
        for (std::uint64_t at = run.begin; at < run.end; ++at)
            inside[at] = true;
    });
    std::uint64_t before = 0;
    for (std::uint64_t at = 0; at <= inside.size(); ++at) {
        EXPECT_EQ(box.bytes_before(at), before) << at;
        before += at < inside.size() && inside[at];
    }
}

} // namespace
} // namespace safering::plan
