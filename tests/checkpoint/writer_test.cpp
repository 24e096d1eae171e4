// HuggingFaceStorageWriter: what it refuses, and how a save that cannot go on ends.
#include <cerrno>
#include <filesystem>

#include "../io/backends.hpp"
#include "checkpoint/attempt.hpp"
#include "disk_fixture.hpp"
#include "io/buffer_pool.hpp"

namespace safering::test {
namespace {

class Writer : public OnDisk {
  protected:
    Writer() : writer(path, {}, reactor) {}

    // Plans of `ranks` for the small model, ready to write.
    void prepare(std::uint32_t ranks, WriterOptions options = {}) {
        writer = HuggingFaceStorageWriter(path, std::move(options), reactor);
        std::vector<SavePlan> local;
        for (std::uint32_t r = 0; r < ranks; ++r) {
            rank.push_back(cut(model, {ranks, 0}, r));
            planner.push_back(std::make_unique<DefaultSavePlanner>(rank.back().tensors, r));
            local.push_back(planner.back()->create_local_plan());
        }
        auto global = create_global_plan(std::move(local));
        ASSERT_TRUE(global);
        metadata = global->metadata;
        auto prepared = writer.prepare_global_plan(std::move(global->plans));
        ASSERT_TRUE(prepared) << prepared.error().message();
        plans = std::move(*prepared);
    }
    std::vector<WriteResults> write_all() {
        std::vector<WriteResults> results;
        for (std::size_t r = 0; r < plans.size(); ++r)
            results.push_back(writer.write_data(plans[r], *planner[r]).get());
        return results;
    }
    Errc finish_code(std::vector<WriteResults> results) {
        auto finished = writer.finish(metadata, std::move(results));
        EXPECT_FALSE(finished);
        return finished ? Errc{} : static_cast<Errc>(finished.error().code.value());
    }

    Model model = small_model(3);
    HuggingFaceStorageWriter writer;
    std::vector<Rank> rank;
    std::vector<std::unique_ptr<DefaultSavePlanner>> planner;
    std::vector<SavePlan> plans;
    Metadata metadata;
};

TEST_F(Writer, ReportsHowItWent) {
    auto report = save_model(model);
    ASSERT_TRUE(report);
    EXPECT_EQ(report->path, path);
    EXPECT_TRUE(checkpoint::is_attempt_id(report->attempt));
    EXPECT_EQ(report->reactor.backend, BackendKind::simulated);
    EXPECT_FALSE(report->replaced);
    std::uint64_t bytes = 0;
    for (const TestTensor& tensor : model)
        bytes += tensor.bytes.size();
    EXPECT_EQ(report->tensor_bytes, bytes);
    EXPECT_EQ(writer.metadata_path(), path + "/model.safetensors.index.json");
}

TEST_F(Writer, RefusesPlansThatDoNotFitTogether) {
    const WriteItem whole{.fqn = "a", .dtype = Dtype::f32, .chunk = {{0}, {8}}, .size = {8}};
    const auto code = [&](std::vector<std::vector<WriteItem>> items) {
        std::vector<SavePlan> given;
        for (auto& list : items)
            given.push_back({.items = std::move(list)});
        auto prepared = writer.prepare_global_plan(std::move(given));
        EXPECT_FALSE(prepared);
        EXPECT_TRUE(disk->list("/ckpt").empty());
        if (!prepared && prepared.error().code != Errc::plan_not_prepared) {
            EXPECT_EQ(prepared.error().tensor, "a") << prepared.error().message();
        }
        return prepared ? std::error_code{} : prepared.error().code;
    };
    const auto changed = [&](auto change) {
        WriteItem item = whole;
        change(item);
        return item;
    };
    EXPECT_EQ(code({}), Errc::plan_not_prepared);
    EXPECT_EQ(code({{whole}, {whole}}), Errc::plan_overlap);
    EXPECT_EQ(code({{changed([](WriteItem& i) { i.chunk.sizes = {7}; })}}), Errc::plan_hole);
    EXPECT_EQ(code({{changed([](WriteItem& i) { i.chunk.sizes = {9}; })}}),
              Errc::plan_out_of_bounds);
    EXPECT_EQ(code({{changed([](WriteItem& i) { i.chunk.sizes = {4}; })},
                    {changed([](WriteItem& i) { i.chunk = {{4}, {4}}, i.dtype = Dtype::i32; })}}),
              Errc::plan_shape_mismatch);
    EXPECT_EQ(code({{changed([](WriteItem& i) {
                  i.size = {~std::uint64_t{0}}, i.chunk.sizes = i.size;
              })}})
                  .category(),
              safering_category());
}

// What no reader would take is refused before anything is written.
TEST_F(Writer, RefusesDigestsThatWouldNotFitTheManifest) {
    constexpr std::uint32_t ranks = 17;
    std::vector<SavePlan> many;
    for (std::uint32_t r = 0; r < ranks; ++r)
        many.push_back({.rank = r,
                        .items = {{.fqn = "experts",
                                   .type = WriteItemType::shard,
                                   .dtype = Dtype::u8,
                                   .chunk = {{0, r, 0}, {std::uint64_t{1} << 22, 1, 1024}},
                                   .size = {std::uint64_t{1} << 22, ranks, 1024}}},
                        .storage = {}});
    HuggingFaceStorageWriter plain(path, {.exchange = ExchangeWay::off}, reactor);
    const auto prepared = plain.prepare_global_plan(many);
    ASSERT_FALSE(prepared);
    EXPECT_EQ(prepared.error().code, Errc::checkpoint_over_budget);
    EXPECT_NE(prepared.error().message().find("without digests"), std::string::npos);
    EXPECT_TRUE(disk->list("/ckpt").empty());
}

TEST_F(Writer, RefusesLocalPlans) {
    SavePlan plan{.items = {{.fqn = "a", .dtype = Dtype::f32, .chunk = {{0}, {8}}, .size = {8}}}};
    EXPECT_TRUE(writer.prepare_local_plan(plan));
    plan.items.push_back(plan.items[0]);
    EXPECT_EQ(writer.prepare_local_plan(plan).error().code, Errc::plan_duplicate_item);
    plan.items[1].chunk.offsets = {1};
    EXPECT_EQ(writer.prepare_local_plan(plan).error().code, Errc::plan_out_of_bounds);
    plan.items[1].chunk.offsets = {1, 2};
    EXPECT_EQ(writer.prepare_local_plan(plan).error().code, Errc::plan_shape_mismatch);
}

TEST_F(Writer, NamesATensorThatTheMappingLacks) {
    auto saved = save_model(model, {1, 0}, {.fqn_to_index_mapping = {{"a.weight", 1}}});
    ASSERT_FALSE(saved);
    EXPECT_EQ(saved.error().code, Errc::plan_unmapped_tensor);
    EXPECT_FALSE(saved.error().tensor.empty());
    auto split =
        HuggingFaceStorageWriter::split_by_storage_plan({{"a", 2}}, {{.fqn = "a"}, {.fqn = "b"}});
    EXPECT_EQ(split.error().tensor, "b");
    EXPECT_EQ(HuggingFaceStorageWriter::split_by_storage_plan({}, {{.fqn = "a"}})->at(1).size(),
              1u);
}

TEST_F(Writer, RefusesStepsOutOfOrder) {
    EXPECT_EQ(writer.finish({}, {}).error().code, Errc::plan_not_prepared);
    Rank one = cut(model, {1, 0}, 0);
    DefaultSavePlanner local(one.tensors);
    try {
        writer.write_data(local.create_local_plan(), local).get();
        FAIL();
    } catch (const Exception& exception) {
        EXPECT_EQ(exception.error().code, Errc::plan_not_prepared);
    }
}

// Resolves to something else than planned.
class WrongPlanner final : public SavePlanner {
  public:
    explicit WrongPlanner(TensorView view) : view_(std::move(view)) {}
    Result<TensorView> resolve_data(const WriteItem&) override { return view_; }

  private:
    TensorView view_;
};

TEST_F(Writer, RefusesDataThatIsNotAsPlanned) {
    prepare(1);
    static std::byte memory[64];
    for (const TensorView& view :
         {TensorView{.data = memory, .dtype = Dtype::i8, .shape = {64, 96}},
          TensorView{.data = memory, .dtype = Dtype::bf16, .shape = {64}},
          TensorView{.data = nullptr, .dtype = Dtype::bf16, .shape = {64, 96}}}) {
        WrongPlanner wrong(view);
        try {
            writer.write_data(plans[0], wrong).get();
            FAIL();
        } catch (const Exception& exception) {
            EXPECT_EQ(exception.error().code, Errc::plan_shape_mismatch);
            EXPECT_FALSE(exception.error().tensor.empty());
        }
    }
}

TEST_F(Writer, RefusesResultsThatDoNotCoverThePlanOnce) {
    prepare(3);
    const auto results = write_all();
    const auto attempt_again = [&](auto change) {
        rank.clear(), planner.clear();
        prepare(3);
        auto fresh = write_all();
        change(fresh);
        const Errc code = finish_code(std::move(fresh));
        EXPECT_TRUE(disk->list("/ckpt").empty());
        return code;
    };
    using All = std::vector<WriteResults>;
    EXPECT_EQ(attempt_again([](All& all) { all.pop_back(); }), Errc::checkpoint_results_mismatch);
    EXPECT_EQ(attempt_again([](All& all) { all.push_back(all[0]); }),
              Errc::checkpoint_results_mismatch);
    EXPECT_EQ(attempt_again([](All& all) { all[0].items.pop_back(); }),
              Errc::checkpoint_results_mismatch);
    EXPECT_EQ(attempt_again([](All& all) { std::swap(all[0].items[0], all[0].items[1]); }),
              Errc::checkpoint_results_mismatch);
    EXPECT_EQ(attempt_again([](All& all) { all[1].rank = 9; }), Errc::checkpoint_results_mismatch);
    EXPECT_EQ(attempt_again([](All& all) { all[0].items[0].digests.push_back(1); }),
              Errc::checkpoint_results_mismatch);
    EXPECT_EQ(attempt_again([](All& all) { all[0].items[0].digests.clear(); }),
              Errc::checkpoint_results_mismatch);
    EXPECT_EQ(attempt_again([&](All& all) { all[2] = results[2]; }),
              Errc::checkpoint_foreign_attempt);
}

TEST_F(Writer, TellsARankThatDoesNotSeeTheDirectory) {
    prepare(2);
    auto elsewhere = std::make_shared<SimulatedDisk>();
    elsewhere->make_directory("/ckpt");
    HuggingFaceStorageWriter other(path, {}, make_reactor(elsewhere));
    try {
        other.write_data(plans[1], *planner[1]).get();
        FAIL();
    } catch (const Exception& exception) {
        EXPECT_EQ(exception.error().code, Errc::checkpoint_not_visible);
        EXPECT_NE(exception.error().message().find("rank 1"), std::string::npos)
            << exception.error().message();
    }
}

TEST_F(Writer, AFullDiskIsAnErrorBeforeTheFirstByteAndHarmsNothing) {
    ASSERT_TRUE(save_model(model));
    disk->inject({.op = Opcode::allocate, .times = Fault::for_ever, .error = ENOSPC});
    auto saved = save_model(small_model(40));
    ASSERT_FALSE(saved);
    EXPECT_EQ(saved.error().code.value(), ENOSPC);
    EXPECT_NE(saved.error().file.find(".safetensors"), std::string::npos);
    EXPECT_EQ(differs(model), "");
    EXPECT_EQ(disk->list("/ckpt"), std::vector<std::string>{"step"});
}

TEST_F(Writer, AFailedWriteOrSyncIsReportedWithRankAndFile) {
    for (const Opcode op : {Opcode::write, Opcode::fsync}) {
        rank.clear(), planner.clear();
        prepare(2);
        disk->inject({.op = op, .times = Fault::for_ever, .error = EIO});
        try {
            writer.write_data(plans[1], *planner[1]).get();
            FAIL();
        } catch (const Exception& exception) {
            EXPECT_EQ(exception.error().code.value(), EIO);
            EXPECT_NE(exception.error().message().find("rank 1"), std::string::npos);
            EXPECT_NE(exception.error().file.find("model-00001"), std::string::npos);
        }
        disk->clear_faults();
        ASSERT_TRUE(writer.abort());
        EXPECT_TRUE(disk->list("/ckpt").empty());
    }
}

TEST_F(Writer, AMissingParentIsNamed) {
    HuggingFaceStorageWriter lost("/nowhere/step", {}, reactor);
    auto prepared = lost.prepare_global_plan({SavePlan{}});
    ASSERT_FALSE(prepared);
    EXPECT_NE(prepared.error().message().find("/nowhere"), std::string::npos);
}

// "latest" may be made before the first save.
TEST(WriterBehindLinks, TheCheckpointIsMadeWhereTheyLead) {
    const std::shared_ptr<Reactor> reactor = Reactor::create().value();
    const TemporaryDirectory temporary;
    std::filesystem::create_directory(temporary / "disk");
    std::filesystem::create_symlink("disk/steps/", temporary / "run");
    std::filesystem::create_symlink("run", temporary / "link");
    for (const std::uint64_t seed : {3, 4}) { // to a new directory, and in place of a checkpoint
        const Model model = small_model(seed);
        auto saved = save(model, {2, 0}, temporary / "link", {}, {reactor});
        ASSERT_TRUE(saved) << saved.error().message();
        EXPECT_EQ(differences(model, {1, 0}, temporary / "disk/steps", reactor), "");
        EXPECT_TRUE(std::filesystem::is_symlink(temporary / "link"));
    }
    std::filesystem::create_symlink("loop", temporary / "loop");
    EXPECT_FALSE(save(small_model(3), {1, 0}, temporary / "loop", {}, {reactor}));
    EXPECT_TRUE(std::filesystem::is_symlink(temporary / "loop"));
}

TEST_F(Writer, AFileInTheWayIsAnError) {
    disk->write_text(path, "a file");
    auto saved = save_model(model);
    ASSERT_FALSE(saved);
    EXPECT_EQ(disk->read_text(path), "a file");
    EXPECT_EQ(disk->list("/ckpt"), std::vector<std::string>{"step"});
}

TEST_F(Writer, ADroppedWriterLeavesNothing) {
    {
        prepare(2);
        (void)writer.write_data(plans[0], *planner[0]); // the future is dropped with work in flight
        writer = HuggingFaceStorageWriter(path, {}, reactor);
    }
    EXPECT_TRUE(disk->list("/ckpt").empty());
}

TEST_F(Writer, CompletesThroughAnyToken) {
    prepare(1);
    std::promise<std::pair<std::exception_ptr, WriteResults>> ended;
    writer.async_write_data(plans[0], *planner[0],
                            [&](std::exception_ptr error, WriteResults results) {
                                EXPECT_TRUE(reactor->running_in_this_thread());
                                ended.set_value({error, std::move(results)});
                            });
    auto [error, results] = ended.get_future().get();
    EXPECT_FALSE(error);
    EXPECT_EQ(results.items.size(), model.size());
    EXPECT_TRUE(writer.finish(metadata, {results}));
    EXPECT_EQ(differs(model), "");
}

TEST_F(Writer, SurvivesShortTransfersAndShuffledCompletions) {
    for (std::uint64_t seed = 1; seed <= 20; ++seed) {
        disk->shorten_transfers(seed);
        disk->shuffle_completions(seed);
        ASSERT_TRUE(save_model(model, {3, seed % 3})) << seed;
        ASSERT_EQ(differences(model, {2, seed % 2}, path, reactor), "") << seed;
    }
}

TEST_F(Writer, SavesWithoutDirectTransfersAndSaysSo) {
    disk->refuse_direct();
    auto report = save_model(model);
    ASSERT_TRUE(report);
    EXPECT_FALSE(report->notes.empty());
    EXPECT_EQ(differs(model), "");
}

TEST_F(Writer, SavesStridedMemory) {
    // A transposed view, a reversed one, and a broadcast one.
    std::vector<std::uint16_t> memory(30 * 20);
    for (std::size_t i = 0; i < memory.size(); ++i)
        memory[i] = static_cast<std::uint16_t>(i);
    auto* data = reinterpret_cast<std::byte*>(memory.data());
    std::vector<LocalTensor> tensors{
        {.fqn = "transposed",
         .data = {.data = data, .dtype = Dtype::u16, .shape = {20, 30}, .strides = {1, 20}}},
        {.fqn = "reversed",
         .data = {.data = data + 2 * 599, .dtype = Dtype::u16, .shape = {600}, .strides = {-1}}},
        {.fqn = "broadcast",
         .data = {.data = data + 2 * 7, .dtype = Dtype::u16, .shape = {5, 3}, .strides = {0, 0}}},
    };
    DefaultSavePlanner own(std::move(tensors));
    auto global = create_global_plan({own.create_local_plan()});
    auto prepared = writer.prepare_global_plan(global->plans);
    ASSERT_TRUE(prepared);
    auto results = writer.write_data((*prepared)[0], own).get();
    ASSERT_TRUE(writer.finish(global->metadata, {results}));
    Model expected{make_tensor("transposed", Dtype::u16, {20, 30}, 0),
                   make_tensor("reversed", Dtype::u16, {600}, 0),
                   make_tensor("broadcast", Dtype::u16, {5, 3}, 0)};
    const auto value = [](TestTensor& tensor, std::size_t i) -> std::uint16_t& {
        return reinterpret_cast<std::uint16_t*>(tensor.bytes.data())[i];
    };
    for (std::size_t i = 0; i < 600; ++i) {
        value(expected[0], i) = memory[(i % 30) * 20 + i / 30];
        value(expected[1], i) = memory[599 - i];
    }
    for (std::size_t i = 0; i < 15; ++i)
        value(expected[2], i) = memory[7];
    EXPECT_EQ(differs(expected), "");
}

// Ranks that nobody coordinates.
class SavingAlone : public OnDisk {
  protected:
    Result<SaveReport> save_alone(std::uint32_t number, std::uint32_t ranks) {
        HuggingFaceStorageWriter writer(
            path, {.layout = FileLayout::sharded, .alone = RankOf{number, ranks}}, reactor);
        const Rank rank = cut(model, {ranks, 0}, number);
        DefaultSavePlanner planner(rank.tensors, number);
        auto plans = writer.prepare_global_plan({planner.create_local_plan()});
        if (!plans)
            return std::unexpected(plans.error());
        auto results = writer.write_data(plans->front(), planner).get();
        return writer.finish({}, {std::move(results)});
    }

    Model model = small_model(9);
};

TEST_F(SavingAlone, EachRankAddsItsOwnFiles) {
    for (int again = 0; again < 2; ++again)
        for (std::uint32_t rank = 0; rank < 3; ++rank) {
            const auto report = save_alone(rank, 3);
            ASSERT_TRUE(report) << report.error().message();
            EXPECT_TRUE(report->notes.empty());
        }
    EXPECT_EQ(disk->list(path),
              (std::vector<std::string>{"shard-00001-model-00001-of-00001.safetensors",
                                        "shard-00002-model-00001-of-00001.safetensors",
                                        "shard-00003-model-00001-of-00001.safetensors"}));
    EXPECT_EQ(disk->list("/ckpt"), std::vector<std::string>{"step"});
    EXPECT_EQ(differs(model), "");
}

TEST_F(SavingAlone, WhatIsReportedSurvivesAPowerCut) {
    for (std::uint32_t rank = 0; rank < 2; ++rank)
        ASSERT_TRUE(save_alone(rank, 2));
    disk = disk->crash();
    reactor = make_reactor(disk);
    EXPECT_EQ(differs(model), "");
}

TEST_F(SavingAlone, DoesNotTouchAWholeCheckpoint) {
    ASSERT_TRUE(save_model(model));
    const auto report = save_alone(0, 2);
    ASSERT_FALSE(report);
    EXPECT_EQ(report.error().code, Errc::checkpoint_conflict);
    EXPECT_EQ(differs(model), "");
    EXPECT_EQ(disk->list("/ckpt"), std::vector<std::string>{"step"});
}

// A reader would go by it, and never come to what was saved.
TEST_F(SavingAlone, DoesNotTouchACheckpointOfOthers) {
    ASSERT_TRUE(save_model(model));
    const std::string manifest = path + "/safering.manifest.json";
    ASSERT_FALSE(reactor->wait({.op = Opcode::unlink, .path = manifest}).error);
    const auto report = save_alone(0, 2);
    ASSERT_FALSE(report);
    EXPECT_EQ(report.error().code, Errc::checkpoint_conflict);
    EXPECT_EQ(differs(model), "");
}

TEST_F(SavingAlone, DoesNotTouchACheckpointThatIsBeingSwitchedIn) {
    disk->write_text(path + "/config.json", "{}");
    disk->inject(
        {.op = Opcode::rename, .path_contains = "model-", .times = Fault::for_ever, .error = EIO});
    ASSERT_FALSE(save_model(model));
    disk->clear_faults();
    const auto report = save_alone(0, 2);
    ASSERT_FALSE(report);
    EXPECT_EQ(report.error().code, Errc::checkpoint_conflict);
    EXPECT_EQ(differs(model), "");
}

TEST_F(SavingAlone, NeedsOneShardedPlan) {
    HuggingFaceStorageWriter full(path, {.alone = RankOf{0, 2}}, reactor);
    EXPECT_EQ(full.prepare_global_plan({SavePlan{}}).error().code, Errc::plan_not_prepared);
}

// Whoever has the buffers may keep them for as long as he likes.
TEST_F(Writer, ACancelledSaveOrLoadDoesNotWaitForABuffer) {
    ASSERT_TRUE(save_model(model));
    prepare(2);
    std::vector<BufferPool::Buffer> all;
    while (auto buffer = reactor->buffers().try_acquire())
        all.push_back(std::move(buffer));
    const auto canceled = [&](auto running, auto&& cancel) {
        EXPECT_EQ(running.wait_for(std::chrono::milliseconds(20)), std::future_status::timeout);
        cancel();
        ASSERT_EQ(running.wait_for(std::chrono::seconds(20)), std::future_status::ready);
        try {
            (void)running.get();
            ADD_FAILURE() << "there was no buffer";
        } catch (const Exception& exception) {
            EXPECT_EQ(exception.code(), std::errc::operation_canceled);
        }
    };
    canceled(writer.write_data(plans[0], *planner[0]), [&] { writer.cancel(); });
    HuggingFaceStorageReader reader(path, {}, reactor);
    const Metadata stored = reader.read_metadata().value();
    std::vector<std::byte> memory(model[0].bytes.size());
    DefaultLoadPlanner destination(
        {{.fqn = model[0].name,
          .data = {.data = memory.data(), .dtype = model[0].dtype, .shape = model[0].shape}}});
    const LoadPlan plan = destination.create_local_plan(stored).value();
    canceled(reader.async_read_data(plan, destination), [&] { reader.cancel(); });
    all.clear();
    ASSERT_TRUE(writer.abort());
    EXPECT_EQ(differs(model), "");
}

TEST_F(Writer, ACancelledWriteEndsAndLeavesTheOldCheckpoint) {
    ASSERT_TRUE(save_model(model));
    const Model older = std::exchange(model, small_model(4));
    prepare(2);
    auto running = writer.write_data(plans[0], *planner[0]);
    writer.cancel();
    try {
        (void)running.get(); // it may have ended before
    } catch (const Exception& exception) {
        EXPECT_EQ(exception.code(), std::errc::operation_canceled);
    }
    ASSERT_TRUE(writer.abort());
    EXPECT_EQ(differs(older), "");
    EXPECT_EQ(disk->list("/ckpt"), std::vector<std::string>{"step"});
}

} // namespace
} // namespace safering::test
