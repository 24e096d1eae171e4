// compare_checkpoints.
#include <algorithm>

#include <safering/checkpoint.hpp>

#include "disk_fixture.hpp"

namespace safering::test {
namespace {

class Compare : public OnDisk {
  protected:
    Result<SaveReport> save_other(const Model& model, Sharding sharding = {2, 0},
                                  const WriterOptions& options = {}) {
        return save(model, sharding, other, options, {reactor});
    }
    CompareReport compared(const CompareOptions& options = {}) {
        auto report = compare_checkpoints(path, other, *reactor, options);
        EXPECT_TRUE(report) << report.error().message();
        return report ? *report : CompareReport{};
    }
    static std::uint64_t bytes_of_model(const Model& model) {
        std::uint64_t bytes = 0;
        for (const TestTensor& tensor : model)
            bytes += tensor.bytes.size();
        return bytes;
    }
    const std::string other = "/ckpt/other";
};

TEST_F(Compare, EqualOnesByDigestWithoutReading) {
    const Model model = small_model(1);
    ASSERT_TRUE(save_model(model));
    ASSERT_TRUE(save_other(model));
    CompareReport report = compared();
    EXPECT_TRUE(report.differences.empty());
    EXPECT_EQ(report.tensors, 4u);
    EXPECT_EQ(report.digest_bytes, bytes_of_model(model));
    EXPECT_EQ(report.read_bytes, 0u);
    report = compared({.read_all = true, .memory_bytes = 10'000});
    EXPECT_TRUE(report.differences.empty());
    EXPECT_EQ(report.read_bytes, 2 * bytes_of_model(model));
}

TEST_F(Compare, WhateverShardingFilesAndDtypes) {
    const Model model = make_model(3);
    ASSERT_TRUE(save_model(model, {4, 1}, {.layout = FileLayout::sharded}));
    for (const Sharding sharding : {Sharding{1, 0}, Sharding{3, 0}, Sharding{2, 1}}) {
        ASSERT_TRUE(save_other(model, sharding, two_files(model)));
        for (const std::uint64_t memory : {1u << 20, 40'000u}) {
            const CompareReport report = compared({.memory_bytes = memory});
            EXPECT_TRUE(report.differences.empty()) << report.differences[0].fqn;
            EXPECT_EQ(report.tensors, model.size());
        }
    }
}

TEST_F(Compare, TellsEveryKindOfDifference) {
    Model model = small_model(1);
    ASSERT_TRUE(save_model(model));
    model[0].bytes[2 * (3 * 96 + 5)] ^= std::byte{1}; // a.weight at [3, 5]
    model[0].bytes[2 * (63 * 96 + 95) + 1] ^= std::byte{1};
    model[1] = make_tensor("b.bias", Dtype::u32, {33}, 2);
    model[2].name = "c.scale2";
    model[3] = make_tensor("d.block", Dtype::u8, {4096, 8}, 4);
    ASSERT_TRUE(save_other(model));
    for (const std::uint64_t memory : {1u << 20, 8192u}) { // in one piece, and in several
        const CompareReport report = compared({.memory_bytes = memory});
        using Kind = TensorDifference::Kind;
        ASSERT_EQ(report.differences.size(), 5u);
        const auto expect = [&](std::size_t i, Kind kind, const char* fqn, const char* detail) {
            EXPECT_EQ(report.differences[i].kind, kind) << fqn;
            EXPECT_EQ(report.differences[i].fqn, fqn);
            EXPECT_EQ(report.differences[i].detail, detail);
        };
        expect(0, Kind::values, "a.weight", "2 of 6144 elements, first at [3, 5]");
        expect(1, Kind::dtype, "b.bias", "F32 and U32");
        expect(2, Kind::only_in_first, "c.scale", "");
        expect(3, Kind::only_in_second, "c.scale2", "");
        expect(4, Kind::shape, "d.block", "[8, 4096] and [4096, 8]");
    }
    EXPECT_EQ(compared({.values = false}).differences.size(), 4u);
}

TEST_F(Compare, ReadsWhereThereIsNoDigestAndRefusesDamage) {
    const Model model = small_model(1);
    ASSERT_TRUE(save_model(model, {2, 0}, {.digests = false}));
    ASSERT_TRUE(save_other(model));
    EXPECT_EQ(compared().read_bytes, 2 * bytes_of_model(model));
    const std::string file = other + "/model-00001-of-00001.safetensors";
    std::string text = disk->read_text(file);
    text.back() ^= 1;
    disk->write_text(file, text);
    EXPECT_EQ(compare_checkpoints(path, other, *reactor).error().code,
              Errc::checkpoint_digest_mismatch);
    EXPECT_EQ(compare_checkpoints(path, "/ckpt/absent", *reactor).error().code,
              Errc::checkpoint_not_found);
}

} // namespace
} // namespace safering::test
