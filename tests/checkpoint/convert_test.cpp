// convert_checkpoint and the one-call API.
#include <algorithm>

#include <safering/save_load.hpp>

#include "disk_fixture.hpp"

namespace safering::test {
namespace {

class Convert : public OnDisk {
  protected:
    Result<SaveReport> convert(const ConvertOptions& options = {}) {
        return convert_checkpoint(path, "/ckpt/out", *reactor, options);
    }
    std::string out_differs(const Model& model) {
        return differences(model, {2, 1}, "/ckpt/out", reactor);
    }
};

TEST_F(Convert, GathersShardsIntoFinalFiles) {
    const Model model = make_model(3);
    ASSERT_TRUE(save_model(model, {4, 1}, {.layout = FileLayout::sharded}));
    for (const ConvertOptions& options :
         {ConvertOptions{}, ConvertOptions{.files = 3}, ConvertOptions{.max_file_bytes = 300'000},
          ConvertOptions{.files = 2, .memory_bytes = 100'000}}) {
        auto report = convert(options);
        ASSERT_TRUE(report) << report.error().message();
        EXPECT_EQ(out_differs(model), "");
        if (options.files != 0) {
            EXPECT_EQ(report->files, options.files);
        }
        auto verified = verify_checkpoint("/ckpt/out", *reactor);
        ASSERT_TRUE(verified);
        EXPECT_TRUE(verified->findings.empty());
    }
    EXPECT_EQ(differs(model), "");
}

TEST_F(Convert, KeepsFilesBelowTheLimitUnlessATensorIsLarger) {
    Model model;
    for (std::uint64_t i = 0; i < 40; ++i)
        model.push_back(make_tensor("layer." + std::to_string(i), Dtype::u8, {1000 + 37 * i}, i));
    model.push_back(make_tensor("large", Dtype::u8, {30000}, 99));
    ASSERT_TRUE(save_model(model));
    auto report = convert({.max_file_bytes = 16384});
    ASSERT_TRUE(report);
    std::size_t over = 0;
    auto info = inspect_checkpoint("/ckpt/out", *reactor);
    for (const CheckpointFileInfo& file : info->files)
        over += file.file_bytes > 16384 ? 1 : 0;
    EXPECT_EQ(over, 1u);
    EXPECT_GT(info->files.size(), 4u);
}

TEST_F(Convert, CarriesTheMetadataThatAllFilesShare) {
    ASSERT_TRUE(save_model(small_model(1), {2, 0},
                           {.layout = FileLayout::sharded, .metadata = {{"step", "12"}}}));
    ASSERT_TRUE(convert());
    const auto info = inspect_checkpoint("/ckpt/out", *reactor);
    const auto& metadata = info->files[0].metadata;
    EXPECT_TRUE(std::ranges::count(metadata, std::pair<std::string, std::string>{"step", "12"}));
    for (const auto& [key, value] : metadata)
        EXPECT_FALSE(key.starts_with("DCP_")) << key;
}

TEST_F(Convert, RefusesItselfADamagedSourceAndBadOptions) {
    ASSERT_TRUE(save_model(small_model(1)));
    EXPECT_EQ(convert_checkpoint(path, path + "/", *reactor).error().code,
              Errc::checkpoint_conflict);
    EXPECT_EQ(
        convert_checkpoint(path + "/model-00001-of-00001.safetensors", path, *reactor).error().code,
        Errc::checkpoint_conflict);
    EXPECT_FALSE(convert({.files = 2, .max_file_bytes = 7}));
    const std::string file = path + "/model-00001-of-00001.safetensors";
    std::string text = disk->read_text(file);
    text[text.size() - 9] ^= 1;
    disk->write_text(file, text);
    auto converted = convert();
    ASSERT_FALSE(converted);
    EXPECT_EQ(converted.error().code, Errc::checkpoint_digest_mismatch);
    EXPECT_EQ(disk->list("/ckpt"), std::vector<std::string>{"step"});
}

class OneCall : public OnDisk {
  protected:
    std::vector<NamedTensor> named(const Model& model) {
        std::vector<NamedTensor> out;
        for (const TestTensor& tensor : model)
            out.push_back(
                {tensor.name,
                 {.data = tensor.bytes.data(), .dtype = tensor.dtype, .shape = tensor.shape}});
        return out;
    }
    const std::string file = "/ckpt/model.safetensors";
};

TEST_F(OneCall, SavesAndLoadsAFile) {
    const Model model = small_model(4);
    const auto report = save_file(file, named(model), {{"step", "3"}}, reactor);
    EXPECT_EQ(disk->list("/ckpt"), std::vector<std::string>{"model.safetensors"});
    EXPECT_EQ(report.files, 1u);
    const LoadedFile loaded = load_file(file, 0, reactor);
    ASSERT_EQ(loaded.tensors.size(), model.size());
    for (const TestTensor& tensor : model) {
        const MutableTensorView& view = loaded.tensors.at(tensor.name);
        EXPECT_EQ(view.shape, tensor.shape);
        EXPECT_TRUE(std::equal(tensor.bytes.begin(), tensor.bytes.end(), view.data));
    }
    EXPECT_EQ(loaded.metadata, (std::vector<std::pair<std::string, std::string>>{{"step", "3"}}));
}

TEST_F(OneCall, ReplacesDurablyOrLeavesTheOldFile) {
    const Model old = small_model(4);
    const Model fresh = small_model(80);
    save_file(file, named(old), {}, reactor);
    const std::size_t first = disk->log_size();
    save_file(file, named(fresh), {}, reactor);
    for (std::size_t records = first; records <= disk->log_size(); ++records)
        for (std::uint64_t seed = 0; seed < 4; ++seed) {
            auto after = disk->crash_after(records, {CrashPolicy::Kind::random_torn, seed});
            auto recovered = make_reactor(after);
            const bool is_new = differences(fresh, {1, 0}, file, recovered).empty();
            ASSERT_TRUE(is_new || differences(old, {1, 0}, file, recovered).empty()) << records;
            ASSERT_TRUE(is_new || records < disk->log_size());
        }
}

TEST_F(OneCall, ThrowsWithTheReason) {
    const Model model = small_model(4);
    EXPECT_THROW(load_file("/ckpt/none.safetensors", 0, reactor), Exception);
    EXPECT_THROW(save_file("/nowhere/x.safetensors", named(model), {}, reactor), Exception);
    save_file(file, named(model), {}, reactor);
    try {
        load_file(file, 100, reactor);
        FAIL();
    } catch (const Exception& exception) {
        EXPECT_EQ(exception.error().code, Errc::checkpoint_over_budget);
    }
    auto twice = named(model);
    twice.push_back(twice[0]);
    EXPECT_THROW(save_file(file, twice, {}, reactor), Exception);
    auto reserved = named(model);
    reserved[0].name = "__metadata__";
    try {
        save_file(file, reserved, {}, reactor);
        FAIL();
    } catch (const Exception& exception) {
        EXPECT_EQ(exception.error().code, Errc::plan_bad_name);
        EXPECT_EQ(exception.error().file, file);
    }
    EXPECT_EQ(differences(model, {1, 0}, file, reactor), "");
}

TEST_F(OneCall, SavesNothingAsAValidFile) {
    save_file(file, {}, {{"only", "metadata"}}, reactor);
    const LoadedFile loaded = load_file(file, 0, reactor);
    EXPECT_TRUE(loaded.tensors.empty());
    EXPECT_EQ(loaded.metadata,
              (std::vector<std::pair<std::string, std::string>>{{"only", "metadata"}}));
}

} // namespace
} // namespace safering::test
