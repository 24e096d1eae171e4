// Saves from staging memory: byte for byte what a save from the caller's own memory writes.
#include "checkpoint/staged_copy.hpp"

#include "disk_fixture.hpp"
#include "io/staging_pool.hpp"

namespace safering::test {
namespace {

class StagedSave : public OnDisk {
  protected:
    // All ranks' parts copied, the originals overwritten, then written.
    Result<SaveReport> save_staged(const Model& model, Sharding sharding, WriterOptions options) {
        HuggingFaceStorageWriter writer(path, options, reactor);
        std::vector<Rank> ranks;
        std::vector<std::unique_ptr<DefaultSavePlanner>> planners;
        std::vector<SavePlan> local;
        for (std::uint32_t r = 0; r < sharding.ranks; ++r) {
            ranks.push_back(cut(model, sharding, r));
            planners.push_back(std::make_unique<DefaultSavePlanner>(ranks.back().tensors, r));
            local.push_back(planners.back()->create_local_plan());
        }
        auto global = create_global_plan(std::move(local));
        auto plans = writer.prepare_global_plan(std::move(global->plans));
        if (!plans)
            return std::unexpected(plans.error());
        std::vector<WriteResults> results;
        for (std::uint32_t r = 0; r < sharding.ranks; ++r) {
            auto staged = checkpoint::StagedCopy::make((*plans)[r]);
            EXPECT_TRUE(
                checkpoint::copy_items(r, (*plans)[r].items, (*staged)->places(), *planners[r]));
            for (auto& memory : ranks[r].memory)
                std::ranges::fill(*memory, std::byte{0x5A});
            results.push_back(writer.write_data((*plans)[r], **staged).get());
        }
        return writer.finish(global->metadata, std::move(results));
    }
};

TEST_F(StagedSave, LoadsAsEveryRankHadIt) {
    const Model model = make_model(7);
    for (const Sharding sharding : {Sharding{1, 0}, Sharding{2, 0}, Sharding{3, 0}, Sharding{2, 1}})
        for (const FileLayout layout : {FileLayout::full, FileLayout::sharded}) {
            WriterOptions options = two_files(model);
            options.layout = layout;
            options.exchange = ExchangeWay::off;
            auto report = save_staged(model, sharding, options);
            ASSERT_TRUE(report) << report.error().message();
            EXPECT_EQ(differs(model), "") << sharding.ranks << " ranks";
        }
}

TEST_F(StagedSave, GivesItsMemoryBack) {
    io::StagingPool& pool = io::StagingPool::of_process();
    const Model model = make_model(8);
    ASSERT_TRUE(save_staged(model, {1, 0}, {}));
    const std::size_t once = pool.bytes();
    for (int i = 0; i < 3; ++i)
        ASSERT_TRUE(save_staged(model, {1, 0}, {}));
    EXPECT_EQ(pool.bytes(), once);
}

TEST_F(StagedSave, StridedMemoryIsMadeDense) {
    const Model model{make_tensor("w", Dtype::f32, {40, 300}, 1)};
    Rank rank = cut(model, {1, 0}, 0);
    // The same tensor, its memory column by column.
    std::vector<std::byte> columns(rank.memory[0]->size());
    for (std::size_t r = 0; r < 40; ++r)
        for (std::size_t c = 0; c < 300; ++c)
            std::memcpy(&columns[4 * (c * 40 + r)], &(*rank.memory[0])[4 * (r * 300 + c)], 4);
    rank.tensors[0].data.data = columns.data();
    rank.tensors[0].data.strides = {1, 40};
    DefaultSavePlanner planner(rank.tensors);
    std::vector<SavePlan> local{planner.create_local_plan()};
    HuggingFaceStorageWriter writer(path, {}, reactor);
    auto plans = writer.prepare_global_plan(std::move(local)).value();
    auto staged = checkpoint::StagedCopy::make(plans[0]).value();
    ASSERT_TRUE(checkpoint::copy_items(0, plans[0].items, staged->places(), planner));
    std::ranges::fill(columns, std::byte{});
    std::vector<WriteResults> results{writer.write_data(plans[0], *staged).get()};
    ASSERT_TRUE(writer.finish({}, std::move(results)));
    EXPECT_EQ(differs(model), "");
}

TEST_F(StagedSave, CopiesLieAsTheFileDoes) {
    const Model model{make_tensor("w", Dtype::u8, {100000}, 2)};
    Rank rank = cut(model, {1, 0}, 0);
    DefaultSavePlanner planner(rank.tensors);
    HuggingFaceStorageWriter writer(path, {}, reactor);
    auto plans = writer.prepare_global_plan({planner.create_local_plan()}).value();
    auto staged = checkpoint::StagedCopy::make(plans[0]).value();
    const ItemPlacement& placement = plans[0].storage->placements[0];
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(staged->places()[0]) % 4096,
              placement.tensor_begin % 4096);
    EXPECT_TRUE(io::StagingPool::of_process().holds(staged->places()[0], 100000));
    ASSERT_TRUE(checkpoint::copy_items(0, plans[0].items, staged->places(), planner));
    std::vector<WriteResults> results{writer.write_data(plans[0], *staged).get()};
    ASSERT_TRUE(writer.finish({}, std::move(results)));
    EXPECT_EQ(differs(model), "");
}

TEST_F(StagedSave, RefusesMemoryThatIsNotAsPlanned) {
    const Model model{make_tensor("w", Dtype::u8, {100}, 2)};
    Rank rank = cut(model, {1, 0}, 0);
    DefaultSavePlanner planner(rank.tensors);
    HuggingFaceStorageWriter writer(path, {}, reactor);
    auto plans = writer.prepare_global_plan({planner.create_local_plan()}).value();
    auto staged = checkpoint::StagedCopy::make(plans[0]).value();
    rank.tensors[0].data.shape = {50};
    DefaultSavePlanner other(rank.tensors);
    const auto copied = checkpoint::copy_items(0, plans[0].items, staged->places(), other);
    ASSERT_FALSE(copied);
    EXPECT_EQ(copied.error().code, Errc::plan_shape_mismatch);
    EXPECT_EQ(copied.error().tensor, "w");
}

TEST_F(StagedSave, LimitsSlowItDownAndNothingElse) {
    const Model model = make_model(9);
    WriterOptions options;
    options.limits = {.bytes_per_second = std::uint64_t{1} << 30, .processor_share = 0.9};
    ASSERT_TRUE(save_staged(model, {2, 0}, options));
    EXPECT_EQ(differs(model), "");
}

TEST_F(StagedSave, WaitingForItsShareIsNotWaitedForInItsTurn) {
    // To wake up costs more than this share earns in the step that was waited: not if that is waited for again.
    const Model model{make_tensor("w", Dtype::u8, {40000}, 2)};
    WriterOptions options;
    options.limits.processor_share = 0.001;
    const auto saved = save_model(model, {1, 0}, options);
    ASSERT_TRUE(saved) << saved.error().message();
    EXPECT_GT(saved->work.pause_seconds, 0);
    EXPECT_EQ(differs(model), "");
}

TEST_F(StagedSave, LiftedLimitsLetItGoOn) {
    // At this rate it would last for years.
    const Model model = make_model(10);
    Rank rank = cut(model, {1, 0}, 0);
    DefaultSavePlanner planner(rank.tensors);
    WriterOptions options;
    options.limits.bytes_per_second = 1;
    HuggingFaceStorageWriter writer(path, options, reactor);
    auto plans = writer.prepare_global_plan({planner.create_local_plan()}).value();
    auto written = writer.write_data(plans[0], planner);
    writer.lift_limits();
    std::vector<WriteResults> results{written.get()};
    ASSERT_TRUE(writer.finish({}, std::move(results)));
    EXPECT_EQ(differs(model), "");
}

TEST_F(StagedSave, ACancelEndsItsWaiting) {
    const Model model = make_model(11);
    Rank rank = cut(model, {1, 0}, 0);
    DefaultSavePlanner planner(rank.tensors);
    WriterOptions options;
    options.limits.bytes_per_second = 1;
    HuggingFaceStorageWriter writer(path, options, reactor);
    auto plans = writer.prepare_global_plan({planner.create_local_plan()}).value();
    auto written = writer.write_data(plans[0], planner);
    writer.cancel();
    try {
        (void)written.get();
        FAIL() << "was not canceled";
    } catch (const Exception& exception) {
        EXPECT_EQ(exception.error().code, std::errc::operation_canceled);
    }
}

} // namespace
} // namespace safering::test
