// Whole saves and loads, over every backend, ranks, layouts and shardings.
#include <filesystem>
#include <ostream>

#include <gtest/gtest.h>

#include "../io/backends.hpp"
#include "io/simulated_disk.hpp"
#include "model.hpp"

namespace safering::test {
namespace {

enum class Where { io_uring, threads, simulated };

struct Case {
    Where where;
    FileLayout layout;
    Sharding save;
    Sharding load;
    std::uint32_t files;
};

// GoogleTest would print the bytes, those between the members too.
void PrintTo(const Case& c, std::ostream* out) {
    *out << c.save.ranks << " to " << c.load.ranks;
}

std::string case_name(const testing::TestParamInfo<Case>& info) {
    const Case& c = info.param;
    constexpr const char* where[] = {"uring", "threads", "simulated"};
    return std::string(where[static_cast<int>(c.where)]) +
           (c.layout == FileLayout::full ? "_full" : "_sharded") + "_save" +
           std::to_string(c.save.ranks) + "d" + std::to_string(c.save.dimension) + "_load" +
           std::to_string(c.load.ranks) + "d" + std::to_string(c.load.dimension) + "_files" +
           std::to_string(c.files);
}

class RoundTrip : public testing::TestWithParam<Case> {
  protected:
    std::shared_ptr<Reactor> make_reactor() {
        // Small buffers, so that a small model has many cells. Of two ranks one has its cells moved in several
        // requests, which are no part of a cell's size.
        ReactorOptions options{.buffer_bytes = 64 << 10, .buffer_count = 4};
        if (++made_ % 2 != 0)
            options.transfer_bytes = 12 << 10;
        if (GetParam().where == Where::simulated)
            return make_simulated_reactor(disk_, options);
        options.backend =
            GetParam().where == Where::io_uring ? BackendChoice::io_uring : BackendChoice::threads;
        auto made = Reactor::create(options);
        if (!made)
            return nullptr;
        return std::move(*made);
    }
    std::string directory() {
        if (GetParam().where != Where::simulated)
            return temporary_.path();
        disk_->make_directory("/ckpt");
        return "/ckpt";
    }

    unsigned made_ = 0;
    std::shared_ptr<SimulatedDisk> disk_ = std::make_shared<SimulatedDisk>();
    TemporaryDirectory temporary_;
};

TEST_P(RoundTrip, IsExact) {
    const Case& c = GetParam();
    std::vector<std::shared_ptr<Reactor>> reactors;
    for (std::uint32_t rank = 0; rank < c.save.ranks; ++rank)
        reactors.push_back(make_reactor());
    if (!reactors[0])
        GTEST_SKIP() << "this kernel refuses io_uring";
    const Model model = make_model(7);
    WriterOptions options{.layout = c.layout};
    if (c.files > 1)
        for (std::size_t i = 0; i < model.size(); ++i)
            options.fqn_to_index_mapping[model[i].name] =
                static_cast<std::uint32_t>(i % c.files + 1);
    const std::string path = directory() + "/step-1";
    auto report = save(model, c.save, path, options, reactors);
    ASSERT_TRUE(report) << report.error().message();
    // A rank whose replicas all went to others writes no shard.
    EXPECT_LE(report->files, c.layout == FileLayout::full ? c.files : c.files * c.save.ranks);
    EXPECT_EQ(differences(model, c.load, path, reactors[0]), "");
    EXPECT_EQ(differences(model, c.load, path, reactors[0], {.verification = Verification::all}),
              "");
    auto verified = verify_checkpoint(path, *reactors[0]);
    ASSERT_TRUE(verified) << verified.error().message();
    EXPECT_TRUE(verified->findings.empty()) << verified->findings[0].message();
    EXPECT_TRUE(verified->unchecked.empty()) << verified->unchecked[0];
    EXPECT_EQ(verified->verified_bytes, report->tensor_bytes);
}

std::vector<Case> cases() {
    std::vector<Case> out;
    for (const Where where : {Where::io_uring, Where::threads, Where::simulated})
        for (const FileLayout layout : {FileLayout::full, FileLayout::sharded})
            for (const Sharding save : {Sharding{1, 0}, {2, 0}, {3, 1}, {4, 0}, {4, 2}})
                for (const Sharding load : {Sharding{1, 0}, {3, 0}, {2, 1}})
                    for (const std::uint32_t files : {1u, 3u})
                        out.push_back({where, layout, save, load, files});
    return out;
}
INSTANTIATE_TEST_SUITE_P(All, RoundTrip, testing::ValuesIn(cases()), case_name);

} // namespace
} // namespace safering::test
