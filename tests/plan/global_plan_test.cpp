#include <safering/planner.hpp>

#include <set>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "random_plans.hpp"

namespace safering {
namespace {

using plan::oracle::Random;

WriteItem whole(std::string fqn, Shape size, Dtype dtype = Dtype::u8) {
    return {std::move(fqn), WriteItemType::tensor, dtype, {Shape(size.size(), 0), size}, size};
}
WriteItem shard(std::string fqn, Shape offsets, Shape sizes, Shape size, Dtype dtype = Dtype::u8) {
    return {std::move(fqn), WriteItemType::shard, dtype, {offsets, sizes}, size};
}

std::vector<std::string> names(const SavePlan& plan) {
    std::vector<std::string> out;
    for (const WriteItem& item : plan.items)
        out.push_back(item.fqn.str());
    return out;
}
using Names = std::vector<std::string>;

TEST(GlobalPlan, ReplicasStayWithTheRankOfFewestBytes) {
    const std::vector<WriteItem> all{whole("a", {10}), whole("b", {20}), whole("c", {30})};
    auto first = all, second = all;
    second.insert(second.begin(), whole("own", {40}));
    // c goes to rank 0 (0 bytes against 40), b too (30 against 40), a to rank 1 (50 against 40).
    const auto global = create_global_plan({{0, first, {}, {}}, {1, second, {}, StoragePlan{}}});
    ASSERT_TRUE(global.has_value());
    EXPECT_EQ(names(global->plans[0]), (Names{"b", "c"}));
    EXPECT_EQ(names(global->plans[1]), (Names{"own", "a"}));
    EXPECT_FALSE(global->plans[1].storage.has_value());
    EXPECT_EQ(global->metadata.tensors.size(), 4u);
}

TEST(GlobalPlan, TheLowestRankWinsATie) {
    const auto global =
        create_global_plan({{2, {whole("a", {8})}, {}}, {1, {whole("a", {8})}, {}}});
    ASSERT_TRUE(global.has_value());
    EXPECT_TRUE(global->plans[0].items.empty());
    EXPECT_EQ(names(global->plans[1]), Names{"a"});
}

TEST(GlobalPlan, AnItemTwiceInOnePlanStaysOnce) {
    const auto global = create_global_plan({{0, {whole("a", {8}), whole("a", {8})}, {}}});
    ASSERT_TRUE(global.has_value());
    EXPECT_EQ(names(global->plans[0]), Names{"a"});
}

TEST(GlobalPlan, ReplicatedShardsOfAMeshStayOnceEach) {
    // Two replicas of two shards, ranks 0..3.
    std::vector<SavePlan> plans;
    for (std::uint32_t rank = 0; rank < 4; ++rank)
        plans.push_back({rank, {shard("w", {rank % 2 * 4}, {4}, {8}), whole("step", {})}, {}});
    const auto global = create_global_plan(plans);
    ASSERT_TRUE(global.has_value());
    EXPECT_EQ(names(global->plans[0]), Names{"w"});
    EXPECT_EQ(names(global->plans[1]), Names{"w"});
    EXPECT_EQ(names(global->plans[2]), Names{"step"});
    EXPECT_EQ(names(global->plans[3]), Names{});
    const auto& tensor = global->metadata.tensors.at("w");
    EXPECT_EQ(tensor.chunks, (Chunks{{{0}, {4}}, {{4}, {4}}}));
    EXPECT_TRUE(tensor.storage.empty());
    EXPECT_EQ(global->metadata.tensors.at("step").size, Shape{});
}

TEST(GlobalPlan, ChunksWithoutElementsAreAllowed) {
    const auto global =
        create_global_plan({{0, {shard("w", {0}, {3}, {3})}, {}},
                            {1, {shard("w", {3}, {0}, {3}), whole("none", {0, 4})}, {}},
                            {2, {}, {}}});
    ASSERT_TRUE(global.has_value());
    EXPECT_EQ(names(global->plans[1]), (Names{"w", "none"}));
    EXPECT_TRUE(create_global_plan({}).has_value());
}

Error error_of(std::vector<SavePlan> plans) {
    auto global = create_global_plan(std::move(plans));
    EXPECT_FALSE(global.has_value());
    return global ? Error{} : global.error();
}

TEST(GlobalPlan, NamesEveryFault) {
    const Error hole =
        error_of({{0, {shard("w", {0}, {2}, {8})}, {}}, {1, {shard("w", {4}, {4}, {8})}, {}}});
    EXPECT_EQ(hole.code, Errc::plan_hole);
    EXPECT_EQ(hole.tensor, "w");
    EXPECT_EQ(hole.detail, "element [2] of a tensor of shape [8] is in no chunk");

    const Error overlap =
        error_of({{0, {shard("w", {0}, {5}, {8})}, {}}, {7, {shard("w", {4}, {4}, {8})}, {}}});
    EXPECT_EQ(overlap.code, Errc::plan_overlap);
    EXPECT_EQ(overlap.detail,
              "element [4] of a tensor of shape [8] is in chunks [5] at [0] of rank 0 "
              "and [4] at [4] of rank 7");

    const Error outside = error_of({{3, {shard("w", {4}, {5}, {8})}, {}}});
    EXPECT_EQ(outside.code, Errc::plan_out_of_bounds);
    EXPECT_NE(outside.detail.find("rank 3"), std::string::npos);

    EXPECT_EQ(error_of({{0, {whole("w", {8})}, {}}, {1, {whole("w", {8}, Dtype::i8)}, {}}}).code,
              Errc::plan_shape_mismatch);
    EXPECT_EQ(error_of({{0, {whole("w", {8})}, {}}, {1, {whole("w", {8, 1})}, {}}}).code,
              Errc::plan_shape_mismatch);
    EXPECT_EQ(error_of({{0, {shard("w", {0, 0}, {8, 1}, {8})}, {}}}).code,
              Errc::plan_shape_mismatch);
    WriteItem half = whole("w", {8});
    half.chunk.sizes = {4};
    EXPECT_EQ(error_of({{0, {half}, {}}, {1, {shard("w", {4}, {4}, {8})}, {}}}).code,
              Errc::plan_shape_mismatch);
    const std::uint64_t huge = std::uint64_t{1} << 62;
    EXPECT_EQ(error_of({{0, {whole("w", {huge, 4})}, {}}}).code, Errc::plan_overflow);
    EXPECT_EQ(error_of({{0, {whole("w", {huge}, Dtype::i64)}, {}}}).code, Errc::plan_overflow);
}

RC_GTEST_PROP(GlobalPlan, KeepsEveryChunkOnceAndBalances, (std::uint64_t seed)) {
    Random random(seed);
    const auto ranks = static_cast<std::uint32_t>(1 + random.below(5));
    const auto once = plan::oracle::random_save(random, ranks, random.below(15));
    auto replicated = once;
    for (const SavePlan& plan : once)
        for (const WriteItem& item : plan.items)
            for (std::uint32_t rank = 0; rank < ranks; ++rank)
                if (random.chance(2))
                    replicated[rank].items.push_back(item);
    const auto global = create_global_plan(replicated);
    RC_ASSERT(global.has_value());
    RC_ASSERT(create_global_plan(replicated)->plans == global->plans);
    std::multiset<std::string> wanted, got;
    const auto label = [](const WriteItem& item) {
        std::string text = item.fqn.str();
        for (const std::uint64_t offset : item.chunk.offsets)
            text += ',' + std::to_string(offset);
        return text;
    };
    for (std::uint32_t rank = 0; rank < ranks; ++rank) {
        for (const WriteItem& item : once[rank].items)
            wanted.insert(label(item));
        for (const WriteItem& item : global->plans[rank].items) {
            got.insert(label(item));
            const auto& items = replicated[rank].items;
            RC_ASSERT(std::find(items.begin(), items.end(), item) != items.end());
            const auto& tensor = global->metadata.tensors.at(item.fqn);
            RC_ASSERT(std::count(tensor.chunks.begin(), tensor.chunks.end(), item.chunk) == 1);
        }
    }
    RC_ASSERT(wanted == got);
}

TEST(GlobalPlan, FullReplicationIsSpreadEvenly) {
    std::vector<WriteItem> items;
    std::uint64_t total = 0;
    for (std::uint64_t n = 1; n <= 200; ++n) {
        items.push_back(whole("t" + std::to_string(n), {n * 37 % 101 + 1}));
        total += n * 37 % 101 + 1;
    }
    std::vector<SavePlan> plans;
    for (std::uint32_t rank = 0; rank < 8; ++rank)
        plans.push_back({rank, items, {}, {}});
    const auto global = create_global_plan(plans);
    ASSERT_TRUE(global.has_value());
    for (const SavePlan& plan : global->plans) {
        std::uint64_t bytes = 0;
        for (const WriteItem& item : plan.items)
            bytes += item.size[0];
        EXPECT_NEAR(static_cast<double>(bytes), static_cast<double>(total) / 8, 3);
    }
}

} // namespace
} // namespace safering
