#include <safering/planner.hpp>

#include <cstring>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "plan/box.hpp"
#include "random_plans.hpp"

namespace safering {
namespace {

using plan::oracle::Random;

TEST(DefaultSavePlanner, PlansWhatTheRankHolds) {
    std::vector<std::byte> memory(64);
    DefaultSavePlanner planner({{"w", {memory.data(), Dtype::f32, {2, 2}}, {4, 2}, {2, 0}},
                                {"w", {memory.data() + 16, Dtype::f32, {2, 2}}, {4, 2}, {0, 0}},
                                {"scalar", {memory.data() + 32, Dtype::i64, {}}, {}, {}},
                                {"b", {memory.data() + 40, Dtype::u8, {8}}, {}, {}}},
                               5);
    const SavePlan plan = planner.create_local_plan();
    EXPECT_EQ(plan.rank, 5u);
    ASSERT_EQ(plan.items.size(), 4u);
    EXPECT_EQ(plan.items[0], (WriteItem{"b", WriteItemType::tensor, Dtype::u8, {{0}, {8}}, {8}}));
    EXPECT_EQ(plan.items[1],
              (WriteItem{"scalar", WriteItemType::tensor, Dtype::i64, {{}, {}}, {}}));
    EXPECT_EQ(plan.items[2],
              (WriteItem{"w", WriteItemType::shard, Dtype::f32, {{0, 0}, {2, 2}}, {4, 2}}));
    EXPECT_EQ(plan.items[3].chunk.offsets, (Shape{2, 0}));
    EXPECT_EQ(planner.resolve_data(plan.items[2])->data, memory.data() + 16);
    EXPECT_EQ(planner.resolve_data(plan.items[3])->data, memory.data());
    WriteItem other = plan.items[2];
    other.chunk.offsets = {1, 0};
    EXPECT_EQ(planner.resolve_data(other).error().code, Errc::plan_shape_mismatch);
    other = plan.items[2];
    other.fqn = "z";
    EXPECT_EQ(planner.resolve_data(other).error().tensor, "z");
    EXPECT_TRUE(create_global_plan({plan}).has_value());
}

TEST(DefaultSavePlanner, APartWithoutElementsDoesNotHideOneThatHasThem) {
    std::vector<std::byte> memory(8);
    DefaultSavePlanner planner({{"w", {memory.data(), Dtype::u8, {4}}, {4}, {0}},
                                {"w", {nullptr, Dtype::u8, {0}}, {4}, {0}}});
    for (const WriteItem& item : planner.create_local_plan().items)
        EXPECT_EQ(planner.resolve_data(item)->shape, item.chunk.sizes);
}

Metadata metadata_of(std::string fqn, Dtype dtype, Shape size,
                     const std::vector<ChunkStorageMetadata>& chunks) {
    Metadata metadata;
    metadata.tensors.emplace(
        std::move(fqn),
        TensorStorageMetadata{dtype, std::move(size), {chunks.begin(), chunks.end()}});
    return metadata;
}

TEST(DefaultLoadPlanner, NamesEveryFault) {
    std::vector<std::byte> memory(64);
    const Metadata metadata =
        metadata_of("w", Dtype::u8, {8}, {{{0}, {4}}, {{5}, {3}}}); // element 4 is missing
    const auto code = [&](LocalDestination destination) {
        const auto plan = DefaultLoadPlanner({std::move(destination)}).create_local_plan(metadata);
        return plan ? std::error_code() : plan.error().code;
    };
    EXPECT_EQ(code({"v", {memory.data(), Dtype::u8, {8}}}), Errc::checkpoint_tensor_missing);
    EXPECT_EQ(code({"w", {memory.data(), Dtype::i8, {8}}}), Errc::plan_shape_mismatch);
    EXPECT_EQ(code({"w", {memory.data(), Dtype::u8, {4}}}), Errc::plan_shape_mismatch);
    EXPECT_EQ(code({"w", {memory.data(), Dtype::u8, {2, 4}}}), Errc::plan_shape_mismatch);
    EXPECT_EQ(code({"w", {memory.data(), Dtype::u8, {4, 1}}, {8}, {0}}), Errc::plan_shape_mismatch);
    EXPECT_EQ(code({"w", {memory.data(), Dtype::u8, {4}}, {8}, {5}}), Errc::plan_out_of_bounds);
    EXPECT_EQ(code({"w", {memory.data(), Dtype::u8, {8}}}), Errc::checkpoint_incomplete);
    EXPECT_EQ(code({"w", {memory.data(), Dtype::u8, {1}}, {8}, {4}}), Errc::checkpoint_incomplete);
    // Nor can the rest of a tensor with a hole be relied on.
    EXPECT_EQ(code({"w", {memory.data(), Dtype::u8, {4}}, {8}, {0}}), Errc::checkpoint_incomplete);
    EXPECT_EQ(code({"w", {memory.data(), Dtype::u8, {3}}, {8}, {5}}), Errc::checkpoint_incomplete);
    const LocalDestination twice{"w", {memory.data(), Dtype::u8, {3}}, {8}, {0}};
    EXPECT_EQ(DefaultLoadPlanner({twice, twice})
                  .create_local_plan(metadata_of("w", Dtype::u8, {8}, {{{0}, {8}}}))
                  .error()
                  .code,
              Errc::plan_duplicate_item);
}

TEST(DefaultLoadPlanner, DistrustsTheMetadata) {
    std::vector<std::byte> memory(64);
    const auto code = [&](const std::vector<ChunkStorageMetadata>& chunks) {
        const auto plan = DefaultLoadPlanner({{"w", {memory.data(), Dtype::u8, {8}}}})
                              .create_local_plan(metadata_of("w", Dtype::u8, {8}, chunks));
        return plan ? std::error_code() : plan.error().code;
    };
    EXPECT_EQ(code({{{0}, {8}}}), std::error_code());
    EXPECT_EQ(code({{{0}, {9}}}), Errc::plan_out_of_bounds);
    EXPECT_EQ(code({{{~std::uint64_t{0}}, {2}}}), Errc::plan_out_of_bounds);
    EXPECT_EQ(code({{{0, 0}, {8, 1}}}), Errc::plan_shape_mismatch);
    EXPECT_EQ(code({{{0}, {8}}, {{2}, {1}}}), Errc::plan_overlap);
    EXPECT_EQ(code({{{0}, {4}}, {{0}, {4}}}), Errc::checkpoint_incomplete);
    EXPECT_EQ(code({{{0}, {4}}, {{2}, {3}}, {{7}, {1}}}), Errc::checkpoint_incomplete);
    EXPECT_EQ(code({}), Errc::checkpoint_incomplete);
}

TEST(DefaultLoadPlanner, ResolvesOnlyItsOwnItems) {
    std::vector<std::byte> memory(64);
    DefaultLoadPlanner planner({{"w", {memory.data(), Dtype::f4, {2, 4}}}});
    ReadItem item{"w", 0, {0, 0}, {0, 0}, {1, 0}, {1, 4}};
    const auto row = planner.resolve_tensor(item);
    ASSERT_TRUE(row.has_value());
    EXPECT_EQ(row->data, memory.data() + 2);
    EXPECT_TRUE(planner.commit_tensor(item).has_value());
    item.dest_offsets = {1, 1};
    item.lengths = {1, 1};
    EXPECT_EQ(planner.resolve_tensor(item).error().code, Errc::plan_partial_byte);
    item.dest_offsets = {1, 4};
    EXPECT_EQ(planner.resolve_tensor(item).error().code, Errc::plan_shape_mismatch);
    item.dest_index = {1, 0};
    EXPECT_EQ(planner.resolve_tensor(item).error().code, Errc::plan_shape_mismatch);
}

// A tensor is stored in one random partition and loaded into another, through planner and copies;
// each element arrives where it belongs.
RC_GTEST_PROP(DefaultLoadPlanner, ReshardsAnyPartitionIntoAnyOther, (std::uint64_t seed)) {
    Random random(seed);
    const Shape size = plan::oracle::random_shape(random, 4, 7);
    const auto chunks = plan::oracle::random_partition(random, size, random.below(20));
    const Metadata metadata = metadata_of("w", Dtype::u16, size, chunks);
    const auto number = [&](const Shape& at) {
        std::uint64_t n = 0;
        for (std::size_t d = 0; d < size.size(); ++d)
            n = n * size[d] + at[d];
        return static_cast<std::uint16_t>(n);
    };
    const auto values_of = [&](const ChunkStorageMetadata& box) {
        std::vector<std::uint16_t> values;
        plan::oracle::for_each_index(box.sizes, [&](const Shape& index) {
            Shape at = box.offsets;
            for (std::size_t d = 0; d < at.size(); ++d)
                at[d] += index[d];
            values.push_back(number(at));
        });
        return values;
    };
    const auto parts = plan::oracle::random_partition(random, size, random.below(20));
    std::vector<std::vector<std::uint16_t>> memory;
    std::vector<LocalDestination> destinations;
    for (const auto& part : parts) {
        memory.emplace_back(values_of(part).size(), std::uint16_t{0xFFFF});
        destinations.push_back(
            {"w",
             {reinterpret_cast<std::byte*>(memory.back().data()), Dtype::u16, part.sizes},
             size,
             part.offsets});
    }
    DefaultLoadPlanner planner(destinations);
    const auto plan = planner.create_local_plan(metadata);
    RC_ASSERT(plan.has_value());
    for (const ReadItem& item : plan->items) {
        const auto& chunk = chunks.at(item.chunk);
        const auto stored = values_of(chunk);
        const auto view = planner.resolve_tensor(item);
        RC_ASSERT(view.has_value());
        RC_ASSERT(view->shape == item.lengths);
        const auto copy = plan::BoxCopy::make(view->dtype, chunk.sizes, item.storage_offsets,
                                              item.lengths, view->strides);
        RC_ASSERT(copy.has_value());
        copy->scatter(reinterpret_cast<const std::byte*>(stored.data()), view->data,
                      {0, stored.size() * 2});
    }
    for (std::size_t p = 0; p < parts.size(); ++p)
        RC_ASSERT(memory[p] == values_of(parts[p]));
}

TEST(DefaultLoadPlanner, ThousandsOfChunksAreNotLookedAtOneByOne) {
    // 40,000 chunks into 40,000 destinations: 1.6 * 10^9 pairs if it did.
    const std::uint64_t n = 40'000;
    std::vector<ChunkStorageMetadata> chunks;
    std::vector<LocalDestination> destinations;
    std::byte memory{};
    for (std::uint64_t i = 0; i < n; ++i) {
        chunks.push_back({{0, i * 2}, {4, 2}});
        destinations.push_back({"w",
                                {&memory, Dtype::u8, {4, i == 0 || i == n ? 1u : 2u}},
                                {4, n * 2},
                                {0, i == 0 ? 0 : i * 2 - 1}});
    }
    const auto plan = DefaultLoadPlanner(destinations)
                          .create_local_plan(metadata_of("w", Dtype::u8, {4, n * 2}, chunks));
    ASSERT_TRUE(plan.has_value());
    EXPECT_EQ(plan->items.size(), 2 * n - 1);
}

} // namespace
} // namespace safering
