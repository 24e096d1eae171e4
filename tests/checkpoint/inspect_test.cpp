// inspect_checkpoint: what the command does not show by itself.
#include <safering/checkpoint.hpp>

#include "disk_fixture.hpp"

namespace safering::test {
namespace {

using Inspect = OnDisk;

TEST_F(Inspect, TellsTheBoxesThatRanksSaved) {
    const Model model{make_tensor("cut", Dtype::f32, {8, 6}, 1),
                      make_tensor("whole", Dtype::f32, {}, 2)};
    ASSERT_TRUE(save_model(model, {4, 0}));
    const auto info = inspect_checkpoint(path, *reactor);
    ASSERT_TRUE(info) << info.error().message();
    ASSERT_EQ(info->saved_boxes.size(), 1u);
    const auto& [index, boxes] = *info->saved_boxes.begin();
    EXPECT_EQ(index, (MetadataIndex{"cut", {0, 0}}));
    ASSERT_EQ(boxes.size(), 4u);
    for (std::uint64_t rank = 0; rank < 4; ++rank)
        EXPECT_EQ(boxes[rank], (ChunkStorageMetadata{{2 * rank, 0}, {2, 6}}));
}

TEST_F(Inspect, TellsNoBoxesOfShardsThatAreWholeInTheirFiles) {
    ASSERT_TRUE(save_model({make_tensor("cut", Dtype::f32, {8, 6}, 1)}, {4, 0},
                           {.layout = FileLayout::sharded}));
    const auto info = inspect_checkpoint(path, *reactor);
    ASSERT_TRUE(info) << info.error().message();
    EXPECT_EQ(info->metadata.tensors.begin()->second.chunks.size(), 4u);
    EXPECT_TRUE(info->saved_boxes.empty());
}

} // namespace
} // namespace safering::test
