// convert_checkpoint and the one-call API.
#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>

#include <safering/save_load.hpp>

#include "../io/backends.hpp"
#include "checkpoint/convert.hpp"
#include "disk_fixture.hpp"
#include "plan/float_convert.hpp"

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

TEST_F(Convert, FollowsAMapping) {
    const Model model = small_model(1);
    ASSERT_TRUE(save_model(model, {3, 0}, {.layout = FileLayout::sharded}));
    FqnToIndexMapping mapping{
        {"a.weight", 1}, {"b.bias", 3}, {"c.scale", 1}, {"d.block", 3}, {"tied.weight", 4}};
    auto report = convert({.fqn_to_index_mapping = mapping});
    ASSERT_TRUE(report) << report.error().message();
    EXPECT_EQ(out_differs(model), "");
    EXPECT_EQ(disk->list("/ckpt/out"),
              (std::vector<std::string>{"model-00001-of-00004.safetensors",
                                        "model-00003-of-00004.safetensors",
                                        "model.safetensors.index.json", "safering.manifest.json"}));
    EXPECT_FALSE(convert({.files = 1, .fqn_to_index_mapping = mapping}));
    mapping.erase("c.scale");
    report = convert({.fqn_to_index_mapping = mapping});
    ASSERT_FALSE(report);
    EXPECT_EQ(report.error().code, Errc::plan_unmapped_tensor);
    EXPECT_EQ(report.error().tensor, "c.scale");
    EXPECT_EQ(out_differs(model), "");
}

TEST_F(Convert, ReplacesTheSourceInPlaceOrLeavesIt) {
    const Model model = small_model(5);
    for (const bool with_manifest : {true, false}) {
        disk = std::make_shared<SimulatedDisk>();
        disk->make_directory("/ckpt");
        reactor = make_reactor(disk);
        ASSERT_TRUE(save_model(model, {3, 0}, {.layout = FileLayout::sharded}));
        if (!with_manifest) { // as torch's writer leaves it
            const std::string manifest = path + "/safering.manifest.json";
            ASSERT_FALSE(reactor->wait({.op = Opcode::unlink, .path = manifest}).error);
            ASSERT_FALSE(reactor->wait({.op = Opcode::sync_directory, .path = path}).error);
        }
        const std::size_t first = disk->log_size();
        auto report = convert_checkpoint(path, path + "/", *reactor, {.memory_bytes = 50'000});
        ASSERT_TRUE(report) << report.error().message();
        EXPECT_TRUE(report->replaced);
        EXPECT_EQ(differs(model), "");
        EXPECT_EQ(disk->list(path), (std::vector<std::string>{"model-00001-of-00001.safetensors",
                                                              "model.safetensors.index.json",
                                                              "safering.manifest.json"}));
        EXPECT_EQ(disk->list("/ckpt"), std::vector<std::string>{"step"});
        for (std::size_t records = first; records <= disk->log_size(); ++records)
            for (std::uint64_t seed = 0; seed < 3; ++seed) {
                auto after = disk->crash_after(records, {CrashPolicy::Kind::random_torn, seed});
                ASSERT_EQ(differences(model, {1, 0}, path, make_reactor(after)), "")
                    << records << " seed " << seed;
            }
    }
}

TEST_F(Convert, KeepsTheFilesOfOthersInPlaceAndGoesOnWhereItWasOnceConverted) {
    const Model model = small_model(2);
    ASSERT_TRUE(save_model(model, {2, 0}, {.layout = FileLayout::sharded}));
    disk->write_text(path + "/config.json", "{}");
    disk->make_directory(path + "/sharded");
    for (int i = 0; i < 2; ++i) {
        ASSERT_TRUE(convert_checkpoint(path, path, *reactor));
        EXPECT_EQ(differs(model), "");
    }
    EXPECT_EQ(disk->list(path).size(), 5u);
}

TEST_F(Convert, WritesBesideTheShardsInTheirOwnDirectory) {
    const Model model = small_model(2);
    disk->make_directory(path);
    ASSERT_TRUE(save(model, {2, 0}, path + "/sharded", {.layout = FileLayout::sharded}, {reactor}));
    ASSERT_TRUE(convert_checkpoint(path + "/sharded", path, *reactor));
    EXPECT_EQ(differs(model), "");
    EXPECT_EQ(differences(model, {1, 0}, path + "/sharded", reactor), "");
}

TEST_F(Convert, LeavesASaveThatCameMeanwhileInPlace) {
    const Model newer = small_model(70);
    ASSERT_TRUE(save_model(small_model(1)));
    ConvertOptions options;
    options.progress = [&](std::uint64_t, std::uint64_t) { ASSERT_TRUE(save_model(newer)); };
    auto converted = convert_checkpoint(path, path, *reactor, options);
    ASSERT_FALSE(converted);
    EXPECT_EQ(converted.error().code, Errc::checkpoint_conflict);
    EXPECT_EQ(differs(newer), "");
    EXPECT_EQ(disk->list("/ckpt"), std::vector<std::string>{"step"});
}

TEST_F(Convert, StopsAndChangesNothing) {
    const Model model = small_model(1);
    ASSERT_TRUE(save_model(model));
    std::stop_source stop;
    ConvertOptions options{.memory_bytes = 20'000};
    options.stop = stop.get_token();
    options.progress = [&](std::uint64_t, std::uint64_t) { stop.request_stop(); };
    auto converted = convert_checkpoint(path, path, *reactor, options);
    ASSERT_FALSE(converted);
    EXPECT_EQ(converted.error().code, std::errc::operation_canceled);
    EXPECT_EQ(differs(model), "");
    EXPECT_EQ(disk->list("/ckpt"), std::vector<std::string>{"step"});
}

TEST_F(Convert, IsSharedByRanks) {
    const Model model = make_model(9, 5);
    ASSERT_TRUE(save_model(model, {4, 1}, {.layout = FileLayout::sharded}));
    for (const std::string& destination : {std::string("/ckpt/out"), path}) {
        std::vector<std::unique_ptr<checkpoint::Conversion>> ranks;
        for (int rank = 0; rank < 3; ++rank) {
            ranks.push_back(std::make_unique<checkpoint::Conversion>(path, destination, *reactor,
                                                                     ConvertOptions{.files = 2}));
            ASSERT_TRUE(ranks.back()->open());
            EXPECT_EQ(ranks.back()->attempt(), ranks.front()->attempt());
        }
        auto parts = ranks[0]->prepare(3);
        ASSERT_TRUE(parts) << parts.error().message();
        std::vector<WriteResults> all;
        for (std::size_t rank : {1u, 2u, 0u}) {
            EXPECT_FALSE((*parts)[rank].empty());
            auto results = ranks[rank]->write((*parts)[rank]);
            ASSERT_TRUE(results) << results.error().message();
            std::ranges::move(*results, std::back_inserter(all));
        }
        auto report = ranks[0]->finish(std::move(all));
        ASSERT_TRUE(report) << report.error().message();
        EXPECT_EQ(differences(model, {2, 1}, destination, reactor), "");
    }
}

TEST_F(Convert, RefusesAFileOfTheDestinationADamagedSourceAndBadOptions) {
    ASSERT_TRUE(save_model(small_model(1)));
    const std::string file = path + "/model-00001-of-00001.safetensors";
    for (const std::string& destination : {path, file})
        EXPECT_EQ(convert_checkpoint(file, destination, *reactor).error().code,
                  Errc::checkpoint_conflict);
    EXPECT_FALSE(convert({.files = 2, .max_file_bytes = 7}));
    std::string text = disk->read_text(file);
    text[text.size() - 9] ^= 1;
    disk->write_text(file, text);
    for (const std::string& destination : {std::string("/ckpt/out"), path}) {
        auto converted = convert_checkpoint(path, destination, *reactor);
        ASSERT_FALSE(converted);
        EXPECT_EQ(converted.error().code, Errc::checkpoint_digest_mismatch);
        EXPECT_EQ(disk->list("/ckpt"), std::vector<std::string>{"step"});
    }
}

TEST_F(Convert, ScalesOfQuantisedWeightsStayWithThem) {
    Model model{make_tensor("a.weight", Dtype::f8_e4m3, {8, 8}, 1),
                make_tensor("a.weight_scale_inv", Dtype::f32, {2, 2}, 2),
                make_tensor("b_blocks", Dtype::u8, {2, 4, 16}, 3),
                make_tensor("b_scale", Dtype::f32, {2, 4}, 4),
                make_tensor("c.weight", Dtype::f32, {4}, 5),
                make_tensor("c.weight_scale", Dtype::f32, {4}, 6)};
    ASSERT_TRUE(save_model(model));
    const auto report = convert({.dtype = Dtype::f16});
    ASSERT_TRUE(report) << report.error().message();
    const Metadata metadata =
        HuggingFaceStorageReader("/ckpt/out", {}, reactor).read_metadata().value();
    const auto dtype_of = [&](const char* name) {
        return metadata.tensors.find(name)->second.dtype;
    };
    EXPECT_EQ(dtype_of("a.weight_scale_inv"), Dtype::f32);
    EXPECT_EQ(dtype_of("b_scale"), Dtype::f32);
    EXPECT_EQ(dtype_of("c.weight"), Dtype::f16);
    EXPECT_EQ(dtype_of("c.weight_scale"), Dtype::f16);
}

// As the files of a hub's cache are links to where their bytes are kept.
TEST(ConvertBehindLinks, RefusesAFileThatIsALinkInTheDestination) {
    const std::shared_ptr<Reactor> reactor = Reactor::create().value();
    const TemporaryDirectory temporary;
    const Model model = small_model(1);
    ASSERT_TRUE(save(model, {2, 0}, temporary / "snapshot", two_files(model), {reactor}));
    const std::string file = temporary / "snapshot/model-00001-of-00002.safetensors";
    std::filesystem::create_directory(temporary / "blobs");
    std::filesystem::rename(file, temporary / "blobs/1");
    std::filesystem::create_symlink("../blobs/1", file);
    EXPECT_EQ(convert_checkpoint(file, temporary / "snapshot", *reactor).error().code,
              Errc::checkpoint_conflict);
    EXPECT_EQ(differences(model, {1, 0}, temporary / "snapshot", reactor), "");
}

// What a model becomes, by the conversion of whole tensors at once.
Model converted(Model model, Dtype dtype) {
    for (TestTensor& tensor : model) {
        if (!plan::is_plain_float(tensor.dtype) || tensor.dtype == dtype)
            continue;
        const std::size_t count = tensor.bytes.size() / (bits(tensor.dtype) / 8);
        std::vector<std::byte> bytes(count * (bits(dtype) / 8));
        plan::convert_floats(bytes.data(), dtype, tensor.bytes.data(), tensor.dtype, count);
        tensor.bytes = std::move(bytes);
        tensor.dtype = dtype;
    }
    return model;
}

TEST_F(Convert, GivesFloatsAnotherDtypeInLittleMemory) {
    const Model model = make_model(11);
    ASSERT_TRUE(save_model(model, {3, 1}, {.layout = FileLayout::sharded}));
    for (const Dtype dtype : {Dtype::bf16, Dtype::f16, Dtype::f32, Dtype::f64})
        for (const std::uint64_t memory : {std::uint64_t{60'000}, std::uint64_t{1} << 28}) {
            auto report = convert({.files = 2, .dtype = dtype, .memory_bytes = memory});
            ASSERT_TRUE(report) << report.error().message();
            EXPECT_EQ(out_differs(converted(model, dtype)), "") << name(dtype) << " " << memory;
            EXPECT_TRUE(verify_checkpoint("/ckpt/out", *reactor)->findings.empty());
        }
    EXPECT_EQ(differs(model), "");
}

TEST_F(Convert, KeepsTheDtypeOfSomeAndTellsWhatBecameInfinite) {
    TestTensor large = make_tensor("large", Dtype::f32, {3}, 1);
    const std::array<float, 3> values{65520, -1, 65519};
    std::memcpy(large.bytes.data(), values.data(), sizeof values);
    const Model model{large, make_tensor("model.norm", Dtype::f64, {4}, 2),
                      make_tensor("scaled", Dtype::f8_e4m3, {4}, 3),
                      make_tensor("steps", Dtype::i32, {4}, 4)};
    ASSERT_TRUE(save_model(model));
    const auto report = convert({.dtype = Dtype::f16, .keep_dtype = {"*no?m", "other"}});
    ASSERT_TRUE(report) << report.error().message();
    Model expected = model;
    expected[0] = converted({model[0]}, Dtype::f16)[0];
    EXPECT_EQ(out_differs(expected), "");
    const auto says = [&](std::string_view text) {
        return std::ranges::any_of(report->notes, [&](const std::string& note) {
            return note.find(text) != std::string::npos;
        });
    };
    EXPECT_TRUE(says("1 finite values, first of \"large\""));
    EXPECT_TRUE(says("1 tensors of 8 bits"));
    EXPECT_EQ(convert({.dtype = Dtype::i32}).error().code, Errc::plan_shape_mismatch);
}

TEST_F(Convert, Renames) {
    Model model = small_model(1);
    ASSERT_TRUE(save_model(model));
    using Kind = Rename::Kind;
    auto report = convert({.dtype = Dtype::f32,
                           .renames = {{Kind::prefix, "a.", "z."},
                                       {Kind::regex_once, "^([b-d])\\.(.)", "$2.$1"},
                                       {Kind::regex_all, "b|e", "_"}}});
    ASSERT_TRUE(report) << report.error().message();
    model = converted(model, Dtype::f32);
    const std::array names{"z.w_ight", "_._ias", "s.ccal_", "_.dlock"};
    for (std::size_t i = 0; i < model.size(); ++i)
        model[i].name = names[i];
    EXPECT_EQ(out_differs(model), "");
}

TEST_F(Convert, RefusesNamesThatDoNotFit) {
    ASSERT_TRUE(save_model(small_model(1)));
    using Kind = Rename::Kind;
    const auto refused = [&](std::vector<Rename> renames) {
        const auto report = convert({.renames = std::move(renames)});
        EXPECT_FALSE(report);
        EXPECT_EQ(report.error().code, Errc::plan_bad_name);
        EXPECT_EQ(disk->list("/ckpt"), std::vector<std::string>{"step"});
        return report.error().message();
    };
    const std::string both =
        refused({{Kind::prefix, "a.weight", "same"}, {Kind::prefix, "b.bias", "same"}});
    for (const std::string_view word : {"a.weight", "b.bias", "same"})
        EXPECT_NE(both.find(word), std::string::npos) << both;
    EXPECT_NE(refused({{Kind::prefix, "b.bias", "d.block"}}).find("b.bias"), std::string::npos);
    EXPECT_NE(refused({{Kind::prefix, "weight", "w"}}).find("at its beginning"), std::string::npos);
    refused({{Kind::regex_once, "nowhere", "w"}});
    EXPECT_NE(refused({{Kind::regex_once, "(", "w"}}).find("regular expression"),
              std::string::npos);
    refused({{Kind::prefix, "", "w"}});
    refused({{Kind::prefix, "c.scale", ""}});
    refused({{Kind::prefix, "c.scale", "__metadata__"}});
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

// Enough new memory for a thread that touches it meanwhile, and that must be gone when it is.
TEST_F(OneCall, LoadsIntoMuchNewMemory) {
    const Model model{make_tensor("a", Dtype::u8, {5, 4 << 20}, 1),
                      make_tensor("b", Dtype::f32, {3, 7}, 2),
                      make_tensor("c", Dtype::u8, {(3 << 20) + 1}, 3)};
    save_file(file, named(model), {}, reactor);
    for (int i = 0; i < 5; ++i) {
        const LoadedFile loaded = load_file(file, 0, reactor);
        for (const TestTensor& tensor : model)
            ASSERT_TRUE(std::equal(tensor.bytes.begin(), tensor.bytes.end(),
                                   loaded.tensors.at(tensor.name).data));
    }
    disk->inject({.op = Opcode::read, .after = 3}); // the header is the first
    EXPECT_THROW(load_file(file, 0, reactor), Exception);
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
