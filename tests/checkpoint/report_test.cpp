// What saves and loads tell of their work, and the counters of all of them.
#include <map>
#include <sstream>

#include <safering/metrics.hpp>

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
