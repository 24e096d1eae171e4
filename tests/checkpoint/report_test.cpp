// What saves and loads tell of their work, and the counters of all of them.
#include <map>
#include <sstream>

#include <safering/metrics.hpp>
#include <safering/save_load.hpp>

#include "checkpoint/work_meter.hpp"
#include "disk_fixture.hpp"

namespace safering::test {
namespace {

// Samples by name and labels; checks that each has a HELP and a TYPE before it, once.
std::map<std::string, double> samples() {
    std::map<std::string, double> out;
    std::map<std::string, int> announced;
    std::istringstream lines(prometheus_text());
    for (std::string line; std::getline(lines, line);) {
        if (line.starts_with("# ")) {
            const std::size_t end = line.find(' ', 7);
            ++announced[line.substr(0, end)];
            EXPECT_TRUE(line.starts_with("# HELP ") || line.substr(end) == " counter") << line;
            continue;
        }
        const std::size_t end = line.rfind(' ');
        const std::string name = line.substr(0, std::min(line.find('{'), end));
        EXPECT_EQ(announced["# HELP " + name], 1) << line;
        EXPECT_EQ(announced["# TYPE " + name], 1) << line;
        EXPECT_TRUE(name.starts_with("safering_") && name.ends_with("_total")) << line;
        EXPECT_TRUE(out.emplace(line.substr(0, end), std::stod(line.substr(end))).second) << line;
    }
    EXPECT_TRUE(prometheus_text().ends_with("\n"));
    return out;
}

double risen(const std::map<std::string, double>& before, const std::string& name) {
    const auto now = samples();
    EXPECT_TRUE(now.contains("safering_" + name)) << name;
    return now.at("safering_" + name) - before.at("safering_" + name);
}

using Reports = OnDisk;

TEST_F(Reports, OfASaveAddUp) {
    const Model model = small_model(1);
    const auto before = samples();
    const auto report = save_model(model, {1, 0});
    ASSERT_TRUE(report) << report.error().message();
    const WorkReport& work = report->work;
    EXPECT_GE(work.direct_bytes + work.cached_bytes, report->tensor_bytes);
    EXPECT_GT(work.requests, 0u);
    EXPECT_GE(work.pieces, model.size());
    EXPECT_EQ(work.digests, work.pieces);
    EXPECT_GE(work.copied_cells, 2u); // 16 KiB each
    EXPECT_EQ(work.uncopied_cells, 0u);
    EXPECT_GE(work.most_in_flight, 1u);
    EXPECT_LE(work.most_in_flight, work.requests);
    EXPECT_GE(work.seconds, work.transfer_seconds + work.flush_seconds);
    EXPECT_GE(work.transfer_seconds, work.stall_seconds);
    EXPECT_GT(work.plan_seconds, 0);
    EXPECT_GT(work.copy_seconds, 0);
    EXPECT_EQ(work.verify_seconds, 0);
    EXPECT_EQ(work.pause_seconds, 0);
    EXPECT_GT(report->prepare_seconds, 0);
    EXPECT_GT(report->commit_seconds, 0);
    EXPECT_EQ(risen(before, "saves_total{result=\"good\"}"), 1);
    EXPECT_EQ(risen(before, "saved_bytes_total"), report->tensor_bytes);
    EXPECT_EQ(risen(before, "jobs_total{direction=\"write\",result=\"good\"}"), 1);
    EXPECT_EQ(risen(before, "requests_total{direction=\"write\"}"), work.requests);
    EXPECT_EQ(risen(before, "transferred_bytes_total{direction=\"write\",way=\"direct\"}"),
              work.direct_bytes);
    EXPECT_EQ(risen(before, "loaded_bytes_total"), 0);
}

// A cell goes in several requests where they are to be smaller; digests and bytes are the same.
TEST_F(Reports, CountRequestsOfTheSizeThatWasAskedFor) {
    const Model model{make_tensor("w", Dtype::u8, {64 << 10}, 1)};
    const auto whole = save_model(model, {1, 0});
    ASSERT_TRUE(whole) << whole.error().message();
    reactor = make_simulated_reactor(
        disk, {.buffer_bytes = 16 << 10, .buffer_count = 3, .transfer_bytes = 4 << 10});
    const auto cut = save_model(model, {1, 0});
    ASSERT_TRUE(cut) << cut.error().message();
    EXPECT_EQ(cut->work.direct_bytes, whole->work.direct_bytes);
    EXPECT_EQ(cut->work.cached_bytes, whole->work.cached_bytes);
    EXPECT_EQ(cut->work.digests, whole->work.digests);
    const std::uint64_t cached =
        whole->work.requests - (whole->work.direct_bytes + (16 << 10) - 1) / (16 << 10);
    EXPECT_EQ(cut->work.requests, cut->work.direct_bytes / (4 << 10) + cached);
    EXPECT_EQ(differs(model), "");
}

TEST_F(Reports, CountWhatWasTriedAgain) {
    const auto before = samples();
    const auto whole = save_model(small_model(1), {1, 0});
    ASSERT_TRUE(whole) << whole.error().message();
    EXPECT_EQ(whole->work.retries, 0u);
    std::uint64_t retries = 0;
    for (std::uint64_t seed = 1; seed <= 8; ++seed) {
        disk->shorten_transfers(seed);
        const auto shortened = save_model(small_model(1), {1, 0});
        ASSERT_TRUE(shortened) << shortened.error().message();
        retries += shortened->work.retries;
    }
    EXPECT_GT(retries, 0u);
    EXPECT_EQ(risen(before, "retries_total{direction=\"write\"}"), retries);
}

TEST_F(Reports, OfALoadAddUp) {
    const Model model = small_model(1);
    ASSERT_TRUE(save_model(model, {2, 0}));
    const auto before = samples();
    HuggingFaceStorageReader reader(path, {}, reactor);
    const auto metadata = reader.read_metadata();
    ASSERT_TRUE(metadata);
    Model loaded = model;
    std::vector<LocalDestination> destinations;
    std::uint64_t bytes = 0;
    for (TestTensor& tensor : loaded) {
        destinations.push_back(
            {tensor.name,
             {.data = tensor.bytes.data(), .dtype = tensor.dtype, .shape = tensor.shape}});
        bytes += tensor.bytes.size();
    }
    DefaultLoadPlanner planner(std::move(destinations));
    const auto plan = planner.create_local_plan(*metadata);
    ASSERT_TRUE(plan);
    const auto report = reader.read_data(*plan, planner);
    ASSERT_TRUE(report) << report.error().message();
    const WorkReport& work = report->work;
    EXPECT_EQ(report->tensor_bytes, bytes);
    EXPECT_EQ(report->verified_bytes, bytes);
    EXPECT_GE(work.direct_bytes + work.cached_bytes, report->read_bytes);
    EXPECT_GE(work.digests, model.size());
    EXPECT_GT(work.verify_seconds, 0);
    EXPECT_GT(work.copy_seconds, 0);
    EXPECT_GT(work.plan_seconds, 0);
    EXPECT_EQ(work.uncopied_cells, 0u);
    EXPECT_EQ(risen(before, "loaded_bytes_total"), bytes);
    EXPECT_EQ(risen(before, "verified_bytes_total"), bytes);
    EXPECT_EQ(risen(before, "jobs_total{direction=\"read\",result=\"good\"}"), 1);
    EXPECT_EQ(risen(before, "digest_mismatches_total"), 0);
}

TEST_F(Reports, TellOfEveryRank) {
    const Model model = small_model(1);
    const auto report = save_model(model, {3, 0});
    ASSERT_TRUE(report) << report.error().message();
    ASSERT_EQ(report->ranks.size(), 3u);
    WorkReport total;
    for (std::uint32_t rank = 0; rank < 3; ++rank) {
        EXPECT_EQ(report->ranks[rank].rank, rank);
        EXPECT_EQ(report->ranks[rank].backend, BackendKind::simulated);
        EXPECT_EQ(report->ranks[rank].reason, reactor->info().reason);
        EXPECT_GT(report->ranks[rank].work.requests, 0u);
        total += report->ranks[rank].work;
    }
    EXPECT_EQ(report->ranks[0].work.requests, report->work.requests);
    EXPECT_NEAR(report->ranks[0].work.seconds, report->work.seconds, 1e-6);
    EXPECT_GE(total.direct_bytes + total.cached_bytes, report->tensor_bytes);
    EXPECT_EQ(summarise(report->ranks).total, total);
    const std::string text = to_text(*report);
    EXPECT_TRUE(text.starts_with("/ckpt/step: 44.1 KiB of tensors in 1 file, new; prepare "))
        << text;
    EXPECT_TRUE(text.contains("\nsimulated       ranks 0-2: a simulated disk\n")) << text;
}

TEST_F(Reports, OfOneFileAndOfARankAloneAreOneRanks) {
    const Model model = small_model(1);
    const Rank rank = cut(model, {1, 0}, 0);
    const auto saved =
        save_file("/ckpt/one.safetensors", std::vector<NamedTensor>{{"a", rank.tensors[0].data}},
                  {}, reactor);
    ASSERT_EQ(saved.ranks.size(), 1u);
    EXPECT_EQ(saved.ranks[0].work, saved.work);
    WriterOptions options;
    options.layout = FileLayout::sharded;
    options.alone = RankOf{3, 4};
    const auto alone = save_model(model, {1, 0}, options);
    ASSERT_TRUE(alone) << alone.error().message();
    ASSERT_EQ(alone->ranks.size(), 1u);
    EXPECT_EQ(alone->ranks[0].rank, 3u);
}

// Of what the others told, only a rank's backend and its reason are not what the disk's tests see.
TEST_F(Reports, NoteARankThatWentAnotherWay) {
    const Model model = small_model(1);
    std::vector<Rank> ranks;
    std::vector<SavePlan> plans;
    std::vector<std::unique_ptr<DefaultSavePlanner>> planners;
    HuggingFaceStorageWriter writer(path, {}, reactor);
    for (std::uint32_t rank = 0; rank < 3; ++rank) {
        ranks.push_back(cut(model, {3, 0}, rank));
        planners.push_back(std::make_unique<DefaultSavePlanner>(ranks.back().tensors, rank));
        plans.push_back(planners.back()->create_local_plan());
    }
    auto global = create_global_plan(std::move(plans));
    ASSERT_TRUE(global);
    auto prepared = writer.prepare_global_plan(std::move(global->plans));
    ASSERT_TRUE(prepared);
    std::vector<WriteResults> results;
    for (std::uint32_t rank = 3; rank-- > 0;) // whatever order they come in
        results.push_back(writer.write_data((*prepared)[rank], *planners[rank]).get());
    results[1].backend = BackendKind::threads;
    results[1].reason = "io_uring_setup: Operation not permitted";
    const auto report = writer.finish(global->metadata, std::move(results));
    ASSERT_TRUE(report) << report.error().message();
    EXPECT_EQ(report->ranks[1].rank, 1u);
    EXPECT_EQ(report->ranks[1].backend, BackendKind::threads);
    const std::string note =
        "rank 1 wrote by threads, not simulated as most: io_uring_setup: Operation not permitted";
    EXPECT_NE(std::ranges::find(report->notes, note), report->notes.end());
    const std::string text = to_text(*report);
    EXPECT_TRUE(text.contains("\nsimulated       ranks 0, 2: a simulated disk\n"
                              "threads         rank 1: io_uring_setup: Operation not permitted\n"
                              "note: "))
        << text;
}

TEST(RankSummary, FindsTheSlowestOfEachPhase) {
    std::vector<RankReport> ranks;
    for (const std::uint32_t rank : {2u, 0u, 3u, 1u}) {
        RankReport report{.rank = rank, .backend = BackendKind::io_uring, .reason = "ring"};
        report.work.seconds = 1 + rank;
        report.work.flush_seconds = rank == 1 ? 9 : 0.5;
        report.work.direct_bytes = 1024 * rank;
        report.work.stalls = 1;
        report.work.most_in_flight = rank;
        ranks.push_back(report);
    }
    ranks[2].backend = BackendKind::threads;
    ranks[2].reason = "refused";
    const RankSummary summary = summarise(ranks);
    EXPECT_EQ(summary.ranks, 4u);
    EXPECT_EQ(summary.total.direct_bytes, 6 * 1024u);
    EXPECT_EQ(summary.total.stalls, 4u);
    EXPECT_EQ(summary.total.most_in_flight, 3u);
    EXPECT_EQ(*summary.spread("seconds"), (RankSpread{"seconds", 1, 2.5, 4, 3}));
    EXPECT_EQ(*summary.spread("flush_seconds"), (RankSpread{"flush_seconds", 0.5, 0.5, 9, 1}));
    EXPECT_EQ(*summary.spread("stalls"), (RankSpread{"stalls", 1, 1, 1, 0}));
    EXPECT_EQ(*summary.spread("pause_seconds"), (RankSpread{"pause_seconds", 0, 0, 0, 0}));
    EXPECT_EQ(summary.spread("nothing"), nullptr);
    EXPECT_EQ(summary.backends,
              (std::vector<BackendRanks>{{BackendKind::io_uring, "ring", {0, 1, 2}},
                                         {BackendKind::threads, "refused", {3}}}));
    EXPECT_EQ(
        to_text(summary),
        "4 ranks: 6.0 KiB direct, 0 B cached; 0 requests of 0 pieces, 0 retries; 0 cells copied, "
        "0 not; 0 digests; 4 stalls\n"
        "                        min     median        max   rank\n"
        "in all              1.000 s    2.500 s    4.000 s      3\n"
        "  flush             0.500 s    0.500 s    9.000 s      1\n"
        "direct bytes            0 B    1.5 KiB    3.0 KiB      3\n"
        "io_uring        ranks 0-2: ring\n"
        "threads         rank 3: refused\n");
    EXPECT_EQ(
        to_text(summarise(std::span(ranks).first(1))),
        "1 rank: 2.0 KiB direct, 0 B cached; 0 requests of 0 pieces, 0 retries; 0 cells copied, "
        "0 not; 0 digests; 1 stalls\n"
        "in all              3.000 s\n"
        "  flush             0.500 s\n"
        "direct bytes        2.0 KiB\n"
        "io_uring        rank 2: ring\n");
    EXPECT_EQ(summarise({}), RankSummary{});
    EXPECT_EQ(to_text(RankSummary{}), "no rank reported\n");
}

TEST_F(Reports, CountWhatFails) {
    ASSERT_TRUE(save_model(small_model(1), {1, 0}));
    const std::string file = path + "/model-00001-of-00001.safetensors";
    std::string text = disk->read_text(file);
    text[text.size() - 9] ^= 1;
    disk->write_text(file, text);
    const auto before = samples();
    EXPECT_NE(differs(small_model(1)), "");
    EXPECT_EQ(risen(before, "jobs_total{direction=\"read\",result=\"failed\"}"), 1);
    EXPECT_EQ(risen(before, "digest_mismatches_total"), 1);
    HuggingFaceStorageWriter writer("/ckpt/other", {}, reactor);
    EXPECT_FALSE(writer.finish({}, {}));
    EXPECT_EQ(risen(before, "saves_total{result=\"failed\"}"), 1);
    EXPECT_EQ(risen(before, "saves_total{result=\"good\"}"), 0);
}

TEST(WorkMeter, TellsStallsFromWork) {
    checkpoint::WorkMeter meter;
    meter.add_request(8192, true);
    meter.add_request(100, false);
    meter.submitted(2);
    meter.ended(3);
    meter.add_request(4096, true);
    meter.submitted(1); // one is in flight: no stall
    meter.ended();
    meter.ended();
    meter.add_request(1, true);
    meter.submitted(1);
    meter.ended();
    const WorkReport report = meter.report();
    EXPECT_EQ(report.requests, 4u);
    EXPECT_EQ(report.most_in_flight, 2u);
    EXPECT_EQ(report.stalls, 1u);
    EXPECT_EQ(report.retries, 3u);
    EXPECT_EQ(report.direct_bytes, 8192u + 4096 + 1);
    EXPECT_EQ(report.cached_bytes, 100u);
    WorkReport twice = report;
    twice += report;
    EXPECT_EQ(twice.requests, 8u);
    EXPECT_EQ(twice.most_in_flight, 2u);
    EXPECT_EQ(twice.seconds, 2 * report.seconds);
}

} // namespace
} // namespace safering::test
