// HuggingFaceStorageReader and verify: checkpoints of others, damaged ones and hostile ones.
#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include <fmt/format.h>
#include <sys/stat.h>

#include "../io/answering_backend.hpp"
#include "../io/backends.hpp"
#include "../safetensors/entries.hpp"
#include "checkpoint/attempt.hpp"
#include "checkpoint/index.hpp"
#include "disk_fixture.hpp"
#include "io/threads_backend.hpp"
#include "safetensors/header.hpp"

namespace safering::test {
namespace {

using Pairs = std::vector<std::pair<std::string, std::string>>;

// A safetensors file as anybody might write it.
std::string file_text(const Model& tensors, const Pairs& metadata = {}) {
    std::vector<safetensors::TensorEntry> entries;
    for (const TestTensor& each : tensors)
        entries.push_back({each.name, each.dtype, each.shape, {}});
    EXPECT_TRUE(safetensors::assign_offsets(entries));
    std::string text = safetensors::write_entries(entries, metadata, 8).value();
    const std::size_t begin = text.size();
    for (const auto& entry : entries)
        for (const TestTensor& each : tensors)
            if (each.name == entry.name) {
                text.resize(std::max(text.size(), begin + entry.data.end));
                std::memcpy(text.data() + begin + entry.data.begin, each.bytes.data(),
                            each.bytes.size());
            }
    return text;
}

class Reader : public OnDisk {
  protected:
    void write(const std::string& name, const std::string& text) {
        disk->write_text(path + "/" + name, text);
    }
    // As upstream's writer with save_distributed: one shard of `tensor`, rows [begin, end).
    void write_shard(std::uint32_t rank, const TestTensor& whole, std::uint64_t begin,
                     std::uint64_t end, std::string info = {}) {
        const ChunkStorageMetadata box{{begin, 0}, {end - begin, whole.shape[1]}};
        TestTensor part{whole.name, whole.dtype, box.sizes, bytes_of(whole, box)};
        if (info.empty())
            info = fmt::format(R"({{"{}":{{"saved_offsets":[{},0]}}}})", whole.name, begin);
        write(fmt::format("shard-{:05}-model-00001-of-00001.safetensors", rank + 1),
              file_text({part}, {{"DCP_SHARDING_INFO", info}, {"DCP_VERSION", "1.0"}}));
    }
    std::vector<Error> findings() {
        auto report = verify_checkpoint(path, *reactor);
        if (!report)
            return {report.error()};
        return report->findings;
    }

    const TestTensor tensor = make_tensor("w", Dtype::bf16, {10, 6}, 1);
};

TEST_F(Reader, ReadsADirectoryWithoutIndexAndASingleFile) {
    const Model model = small_model(5);
    write("model.safetensors", file_text(model));
    write("config.json", "{}");
    EXPECT_EQ(differs(model), "");
    EXPECT_EQ(differences(model, {2, 1}, path + "/model.safetensors", reactor), "");
    auto info = inspect_checkpoint(path, *reactor);
    ASSERT_TRUE(info);
    EXPECT_EQ(info->source, CheckpointSource::directory);
    auto verified = verify_checkpoint(path, *reactor);
    ASSERT_TRUE(verified);
    EXPECT_TRUE(verified->findings.empty());
    EXPECT_FALSE(verified->unchecked.empty());
}

TEST_F(Reader, GoesByTheIndexWhereThereIsOne) {
    Model model = small_model(5);
    Model stray{model[0]};
    stray[0].bytes[0] ^= std::byte{1};
    write("a.safetensors", file_text(stray));
    write("b.safetensors", file_text(model));
    EXPECT_EQ(load_error().code, Errc::checkpoint_conflict);
    checkpoint::WeightMap map;
    for (const TestTensor& each : model)
        map[each.name] = "b.safetensors";
    write("model.safetensors.index.json", checkpoint::index_text(map, 0));
    EXPECT_EQ(differs(model), "");
    map["ghost"] = "b.safetensors";
    write("model.safetensors.index.json", checkpoint::index_text(map, 0));
    EXPECT_EQ(load_error().code, Errc::checkpoint_tensor_missing);
    EXPECT_EQ(load_error().tensor, "ghost");
    map["ghost"] = "gone.safetensors";
    write("model.safetensors.index.json", checkpoint::index_text(map, 0));
    EXPECT_EQ(load_error().code, Errc::checkpoint_file_missing);
}

TEST_F(Reader, VerifyTellsWhatTheProcessLacksFromDamage) {
    ASSERT_TRUE(save_model(small_model(5), {2, 0}, {.layout = FileLayout::sharded}));
    for (const int lacking : {EACCES, EPERM, EMFILE, ENOMEM})
        for (const Opcode op : {Opcode::open, Opcode::read}) {
            disk->inject({.op = op,
                          .path_contains = "shard-00001",
                          .times = Fault::for_ever,
                          .error = lacking});
            const auto verified = verify_checkpoint(path, *reactor);
            disk->clear_faults();
            ASSERT_FALSE(verified) << lacking;
            EXPECT_EQ(verified.error().code, std::error_code(lacking, std::system_category()));
        }
    disk->inject({.op = Opcode::read, .path_contains = "shard-00001", .times = Fault::for_ever});
    EXPECT_FALSE(findings().empty()) << "a disk that cannot read is damage";
}

TEST_F(Reader, VerifySaysEachFaultOnceAndNothingThatIsNot) {
    const Model model = small_model(5);
    ASSERT_TRUE(save_model(model, {2, 0}, {.layout = FileLayout::sharded}));
    const std::string shard = path + "/shard-00001-model-00001-of-00001.safetensors";
    disk->write_text(shard, "short");
    auto verified = verify_checkpoint(path, *reactor);
    ASSERT_TRUE(verified);
    ASSERT_EQ(verified->findings.size(), 1u);
    EXPECT_EQ(verified->findings[0].code, Errc::checkpoint_file_size);
    EXPECT_TRUE(verified->unchecked.empty()) << verified->unchecked[0];

    // By the next best list, the file that is short and the manifest are all that is wrong.
    write(std::string(checkpoint::manifest_name), "{");
    verified = verify_checkpoint(path, *reactor);
    ASSERT_TRUE(verified);
    EXPECT_EQ(verified->findings.size(), 2u);
    for (const std::string& each : verified->unchecked)
        EXPECT_FALSE(each.contains("is not there") && each.contains(checkpoint::manifest_name))
            << each;
}

TEST_F(Reader, VerifySaysWhichFileLacksATensorOfTheIndex) {
    const Model model = small_model(5);
    write("a.safetensors", file_text({model[0]}));
    write("b.safetensors", file_text({model[1]}));
    write("model.safetensors.index.json",
          checkpoint::index_text(
              {{model[0].name, "a.safetensors"}, {model[1].name, "a.safetensors"}}, 0));
    const auto found = findings();
    ASSERT_EQ(found.size(), 1u);
    EXPECT_TRUE(found[0].detail.contains("a.safetensors holds it, which does not"))
        << found[0].detail;
}

TEST_F(Reader, ReadsShardsOfAnySharding) {
    write_shard(0, tensor, 0, 4);
    write_shard(1, tensor, 4, 7);
    write_shard(2, tensor, 7, 10);
    for (const Sharding sharding : {Sharding{1, 0}, {2, 0}, {3, 1}, {4, 0}})
        EXPECT_EQ(differences({tensor}, sharding, path, reactor), "");
}

TEST_F(Reader, NoticesALostOverlappingOrForeignShard) {
    write_shard(0, tensor, 0, 4);
    write_shard(2, tensor, 7, 10);
    EXPECT_EQ(load_error().code, Errc::checkpoint_incomplete);
    EXPECT_EQ(load_error().tensor, "w");
    write_shard(1, tensor, 3, 7);
    EXPECT_EQ(load_error().code, Errc::checkpoint_conflict);
    TestTensor other = make_tensor("w", Dtype::f32, {10, 6}, 1);
    write_shard(1, other, 4, 7);
    EXPECT_EQ(load_error().code, Errc::checkpoint_conflict);
}

TEST_F(Reader, TakesASingleShardAsItStandsWhereAsked) {
    write_shard(1, tensor, 4, 7);
    EXPECT_EQ(load_error().code, Errc::checkpoint_incomplete);
    HuggingFaceStorageReader reader(path + "/shard-00002-model-00001-of-00001.safetensors",
                                    {.sharding_info = ShardingInfo::ignore}, reactor);
    const Metadata metadata = value_or_throw(reader.read_metadata());
    const TensorStorageMetadata& stored = metadata.tensors.at("w");
    EXPECT_EQ(stored.size, (Shape{3, 6}));
    std::vector<std::byte> bytes(stored.storage.at(0).length);
    DefaultLoadPlanner planner(
        {{.fqn = "w", .data = {.data = bytes.data(), .dtype = Dtype::bf16, .shape = {3, 6}}}});
    const LoadPlan plan = value_or_throw(planner.create_local_plan(metadata));
    EXPECT_TRUE(reader.read_data(plan, planner));
    EXPECT_EQ(bytes, bytes_of(tensor, {{4, 0}, {3, 6}}));
}

TEST_F(Reader, RefusesBadShardingInfo) {
    for (const char* info :
         {"{", "[]", "{}", R"({"w":{}})", R"({"w":{"saved_offsets":0}})",
          R"({"w":{"saved_offsets":[0]}})", R"({"w":{"saved_offsets":[-1,0]}})",
          R"({"w":{"saved_offsets":[0.5,0]}})", R"({"w":{"saved_offsets":["0",0]}})",
          R"({"w":{"saved_offsets":[0,0,0]}})", R"({"w":{"saved_offsets":[0,0]},"w":{}})"}) {
        write_shard(0, tensor, 0, 10, info);
        EXPECT_EQ(load_error().code, Errc::checkpoint_bad_sharding_info) << info;
        EXPECT_NE(load_error().file.find("shard-00001"), std::string::npos);
    }
    write_shard(0, tensor, 0, 10, R"({"w":{"saved_offsets":[18446744073709551615,0]}})");
    EXPECT_EQ(load_error().code, Errc::checkpoint_bad_sharding_info);
    write_shard(1, tensor, 0, 10);
    EXPECT_EQ(findings().size(), 1u);
}

TEST_F(Reader, NeverMixesTwoSavesWhileOneReplacesTheOther) {
    const Model old = small_model(5);
    const Model fresh = small_model(70);
    ASSERT_TRUE(save_model(old, {2, 0}, two_files(old)));
    std::atomic<bool> done = false;
    std::thread saving([&] {
        auto own = make_reactor(disk);
        for (int i = 0; i < 20; ++i)
            EXPECT_TRUE(save(i % 2 == 0 ? fresh : old, {2, 0}, path, two_files(old), {own}));
        done = true;
    });
    while (!done) {
        HuggingFaceStorageReader reader(path, {.verification = Verification::off}, reactor);
        auto metadata = reader.read_metadata();
        if (!metadata) {
            EXPECT_EQ(metadata.error().code, Errc::checkpoint_conflict)
                << metadata.error().message();
            continue;
        }
        std::vector<std::vector<std::byte>> memory;
        std::vector<LocalDestination> destinations;
        for (const TestTensor& each : old) {
            memory.emplace_back(each.bytes.size());
            destinations.push_back(
                {.fqn = each.name,
                 .data = {.data = memory.back().data(), .dtype = each.dtype, .shape = each.shape}});
        }
        DefaultLoadPlanner planner(std::move(destinations));
        ASSERT_TRUE(reader.read_data(planner.create_local_plan(*metadata).value(), planner));
        std::size_t of_old = 0;
        std::size_t of_fresh = 0;
        for (std::size_t i = 0; i < old.size(); ++i) {
            of_old += memory[i] == old[i].bytes ? 1 : 0;
            of_fresh += memory[i] == fresh[i].bytes ? 1 : 0;
        }
        ASSERT_TRUE(of_old == old.size() || of_fresh == old.size())
            << of_old << " and " << of_fresh;
    }
    saving.join();
}

TEST_F(Reader, SaysWhatIsNotThere) {
    EXPECT_EQ(load_error().code, Errc::checkpoint_not_found);
    disk->make_directory(path);
    EXPECT_EQ(load_error().code, Errc::checkpoint_not_found);
    write("config.json", "{}");
    EXPECT_EQ(load_error().code, Errc::checkpoint_not_found);
}

TEST_F(Reader, RefusesALoadThatTheFilesCannotServe) {
    const Model model = small_model(5);
    ASSERT_TRUE(save_model(model));
    HuggingFaceStorageReader reader(path, {}, reactor);
    EXPECT_EQ(reader.prepare_local_plan({}).error().code, Errc::plan_not_prepared);
    const Metadata metadata = reader.read_metadata().value();
    std::vector<std::byte> memory(1 << 16);
    const auto code = [&](LocalDestination destination) {
        DefaultLoadPlanner planner({std::move(destination)});
        auto plan = planner.create_local_plan(metadata);
        return plan ? std::error_code{} : plan.error().code;
    };
    const MutableTensorView view{.data = memory.data(), .dtype = Dtype::bf16, .shape = {64, 96}};
    EXPECT_EQ(code({.fqn = "a.weight", .data = view}), std::error_code{});
    EXPECT_EQ(code({.fqn = "ghost", .data = view}), Errc::checkpoint_tensor_missing);
    MutableTensorView wrong = view;
    wrong.dtype = Dtype::f16;
    EXPECT_EQ(code({.fqn = "a.weight", .data = wrong}), Errc::plan_shape_mismatch);
    wrong = view;
    wrong.shape = {64, 95};
    EXPECT_EQ(code({.fqn = "a.weight", .data = wrong}), Errc::plan_shape_mismatch);
    // Hand-made plans are checked too.
    DefaultLoadPlanner planner({{.fqn = "a.weight", .data = view}});
    LoadPlan plan = planner.create_local_plan(metadata).value();
    plan.items[0].chunk = 3;
    EXPECT_EQ(reader.read_data(plan, planner).error().code, Errc::plan_out_of_bounds);
    plan.items[0].chunk = 0;
    plan.items[0].storage_offsets = {1, 0};
    EXPECT_EQ(reader.read_data(plan, planner).error().code, Errc::plan_out_of_bounds);
    plan.items[0].fqn = "ghost";
    EXPECT_FALSE(reader.read_data(plan, planner));
}

// Every byte of header, manifest and index, and every byte of the data: changed, it is found by verify and by
// a load of the whole.
TEST_F(Reader, NoticesEveryChangedByte) {
    const Model model{make_tensor("a", Dtype::bf16, {16, 24}, 1),
                      make_tensor("b", Dtype::f32, {9}, 2)};
    ASSERT_TRUE(save_model(model, {2, 1}));
    for (const std::string& name : disk->list(path)) {
        const std::string whole = disk->read_text(path + "/" + name);
        // The padding of the header is 4 KiB of spaces: a few of them will do.
        for (std::size_t i = 0; i < whole.size(); i += (i > 600 && i < 4000 ? 97 : 1)) {
            std::string changed = whole;
            changed[i] = static_cast<char>(changed[i] ^ 4);
            write(name, changed);
            ASSERT_NE(differs(model), "") << name << " byte " << i;
            ASSERT_FALSE(findings().empty()) << name << " byte " << i;
        }
        for (const std::size_t size :
             {std::size_t{0}, std::size_t{7}, whole.size() / 2, whole.size() - 1}) {
            write(name, whole.substr(0, size));
            ASSERT_NE(differs(model), "") << name << " cut to " << size;
            ASSERT_FALSE(findings().empty()) << name << " cut to " << size;
        }
        write(name, whole + "x");
        ASSERT_FALSE(findings().empty()) << name << " grown";
        write(name, whole);
    }
    EXPECT_TRUE(findings().empty());
    EXPECT_EQ(differs(model), "");
}

TEST_F(Reader, NoticesMissingAndSwappedFiles) {
    const Model model{make_tensor("a", Dtype::u8, {100}, 1), make_tensor("b", Dtype::u8, {100}, 2)};
    ASSERT_TRUE(save_model(model, {1, 0}, two_files(model)));
    const std::string one = path + "/model-00001-of-00002.safetensors";
    const std::string two = path + "/model-00002-of-00002.safetensors";
    const std::string first = disk->read_text(one);
    const std::string second = disk->read_text(two);
    disk->write_text(one, second);
    disk->write_text(two, first);
    EXPECT_EQ(load_error().code, Errc::checkpoint_digest_mismatch);
    EXPECT_GE(findings().size(), 2u);
    disk->write_text(one, first);
    (void)reactor->wait({.op = Opcode::unlink, .path = two});
    EXPECT_EQ(load_error().code, Errc::checkpoint_file_missing);
    ASSERT_EQ(findings().size(), 1u);
    EXPECT_NE(findings()[0].file.find("model-00002"), std::string::npos);
}

TEST_F(Reader, CollectsEveryFindingAndGoesOn) {
    const Model model = small_model(5);
    ASSERT_TRUE(save_model(model, {1, 0}, two_files(model)));
    for (const char* name :
         {"/model-00001-of-00002.safetensors", "/model-00002-of-00002.safetensors"}) {
        std::string text = disk->read_text(path + name);
        text[5000] ^= 1;
        disk->write_text(path + name, text);
    }
    EXPECT_EQ(findings().size(), 2u);
    for (const Error& finding : findings()) {
        EXPECT_EQ(finding.code, Errc::checkpoint_digest_mismatch);
        EXPECT_FALSE(finding.tensor.empty());
        EXPECT_NE(finding.length, 0u);
    }
}

TEST_F(Reader, AVerifiedPartialLoadFindsAChangeInWhatItCovers) {
    const Model model{make_tensor("a", Dtype::u8, {64, 1024}, 1)};
    ASSERT_TRUE(save_model(model, {2, 0}));
    const std::string file = path + "/model-00001-of-00001.safetensors";
    std::string text = disk->read_text(file);
    text[4096 + 40 * 1024] ^= 1; // row 40
    disk->write_text(file, text);
    HuggingFaceStorageReader reader(path, {.verification = Verification::all}, reactor);
    const Metadata metadata = reader.read_metadata().value();
    std::vector<std::byte> memory(1024);
    const auto load_row = [&](std::uint64_t row) {
        DefaultLoadPlanner planner({{.fqn = "a",
                                     .data = {.data = memory.data(), .shape = {1, 1024}},
                                     .size = {64, 1024},
                                     .offsets = {row, 0}}});
        return reader.read_data(planner.create_local_plan(metadata).value(), planner);
    };
    EXPECT_TRUE(load_row(3));
    auto loaded = load_row(40);
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().code, Errc::checkpoint_digest_mismatch);
    EXPECT_EQ(loaded.error().tensor, "a");
}

TEST_F(Reader, KeepsReadingTheCheckpointThatItOpened) {
    const Model old = small_model(5);
    ASSERT_TRUE(save_model(old));
    HuggingFaceStorageReader reader(path, {}, reactor);
    const Metadata metadata = reader.read_metadata().value();
    ASSERT_TRUE(save_model(small_model(70)));
    std::vector<std::byte> memory(old[0].bytes.size());
    DefaultLoadPlanner planner(
        {{.fqn = old[0].name,
          .data = {.data = memory.data(), .dtype = Dtype::bf16, .shape = {64, 96}}}});
    auto loaded = reader.read_data(planner.create_local_plan(metadata).value(), planner);
    ASSERT_TRUE(loaded) << loaded.error().message();
    EXPECT_EQ(memory, old[0].bytes);
}

TEST_F(Reader, AReadErrorAndAFileCutMeanwhileAreErrors) {
    ASSERT_TRUE(save_model(small_model(5)));
    disk->inject(
        {.op = Opcode::read, .path_contains = "model-", .after = 1, .times = Fault::for_ever});
    EXPECT_NE(differs(small_model(5)), "");
    disk->clear_faults();
    EXPECT_EQ(differs(small_model(5)), "");
}

// What only a real file system has.
// Cannot rename files of a checkpoint, so that a switch stays half done; and as soon as it is to open one of the attempt's
// files, another process has moved that into the target.
class HalfSwitched final : public AnsweringBackend {
  public:
    explicit HalfSwitched(std::filesystem::path into)
        : AnsweringBackend(make_threads_backend({}, "a test")), target_(std::move(into)) {}

    void start(Operation& operation) override {
        const std::filesystem::path path = operation.request.path;
        const bool named =
            path.parent_path().extension() == ".tmp" && !path.filename().string().starts_with('.');
        if (named && operation.request.op == Opcode::rename &&
            std::filesystem::path(operation.request.new_path).lexically_normal().parent_path() ==
                target_) {
            return fail(operation, {EROFS, std::system_category()});
        }
        if (named && operation.request.op == Opcode::open &&
            operation.request.mode == OpenMode::read && moves) {
            std::error_code gone; // moved already
            std::filesystem::rename(path, target_ / path.filename(), gone);
            moved += gone ? 0 : 1;
        }
        ForwardingBackend::start(operation);
    }

    std::atomic<bool> moves = false;
    std::atomic<int> moved = 0;

  private:
    std::filesystem::path target_;
};

class HostileFiles : public testing::Test {
  protected:
    HostileFiles() {
        reactor = Reactor::create({.backend = BackendChoice::threads}).value();
        std::filesystem::create_directory(path);
    }
    void write(const std::string& name, const std::string& text) {
        std::ofstream(path + "/" + name, std::ios::binary) << text;
    }
    Result<Metadata> read(bool strict = false) {
        HuggingFaceStorageReader reader(path, {.strict = strict}, reactor);
        return reader.read_metadata();
    }

    TemporaryDirectory temporary;
    const std::string path = temporary / "step";
    std::shared_ptr<Reactor> reactor;
    const Model model = small_model(8);
};

TEST_F(HostileFiles, LinksAreFollowedUnlessStrict) {
    std::filesystem::create_directory(temporary / "blobs");
    std::ofstream(temporary / "blobs/1", std::ios::binary) << file_text(model);
    std::filesystem::create_symlink("../blobs/1", path + "/model.safetensors");
    EXPECT_EQ(differences(model, {1, 0}, path, reactor), "");
    auto strict = read(true);
    ASSERT_FALSE(strict);
    EXPECT_NE(strict.error().message().find("symbolic link"), std::string::npos)
        << strict.error().message();
}

TEST_F(HostileFiles, PipesDirectoriesAndDevicesInPlaceOfAFile) {
    ASSERT_EQ(::mkfifo((path + "/model.safetensors").c_str(), 0600), 0);
    EXPECT_EQ(read().error().code, Errc::checkpoint_not_a_file);
    std::filesystem::remove(path + "/model.safetensors");
    std::filesystem::create_directory(path + "/model.safetensors");
    EXPECT_FALSE(read());
    std::filesystem::remove(path + "/model.safetensors");
    std::filesystem::create_symlink("/dev/zero", path + "/model.safetensors");
    EXPECT_EQ(read().error().code, Errc::checkpoint_not_a_file);
    std::filesystem::remove(path + "/model.safetensors");
    std::filesystem::create_symlink("nowhere", path + "/model.safetensors");
    EXPECT_FALSE(read());
}

TEST_F(HostileFiles, FilesThatAnotherSwitchesInMeanwhileAreFollowed) {
    std::filesystem::remove(path);
    const Model fresh = small_model(70);
    ASSERT_TRUE(save(model, {2, 0}, path, two_files(model), {reactor}));
    auto backend = std::make_unique<HalfSwitched>(path);
    HalfSwitched& half = *backend;
    auto context = std::make_unique<boost::asio::io_context>(1);
    boost::asio::io_context& used = *context;
    const std::shared_ptr<Reactor> switching =
        make_reactor(std::move(backend), {}, std::move(context), used);
    (void)save(fresh, {2, 0}, path, two_files(model), {switching});
    ASSERT_TRUE(std::filesystem::exists(path + "/.safering.redo"));
    EXPECT_EQ(differences(fresh, {1, 0}, path, switching), ""); // where they lie
    half.moves = true;
    EXPECT_EQ(differences(fresh, {1, 0}, path, switching), "");
    const auto verified = verify_checkpoint(path, *switching);
    ASSERT_TRUE(verified.has_value()) << verified.error().message();
    EXPECT_TRUE(verified->findings.empty()) << verified->findings.front().message();
    EXPECT_EQ(half.moved, 4); // the manifest, the index and both files
}

TEST_F(HostileFiles, AHugeHoleIsNotRead) {
    write("model.safetensors", "");
    std::filesystem::resize_file(path + "/model.safetensors", std::uintmax_t{1} << 40);
    EXPECT_EQ(read().error().code, Errc::header_empty);
    std::fstream file(path + "/model.safetensors", std::ios::binary | std::ios::in | std::ios::out);
    const std::uint64_t length = std::uint64_t{1} << 39;
    file.write(reinterpret_cast<const char*>(&length), 8);
    file.close();
    EXPECT_EQ(read().error().code, Errc::header_too_large);
}

TEST_F(HostileFiles, AnIndexCannotLeaveTheDirectory) {
    std::ofstream(temporary / "secret.safetensors", std::ios::binary) << file_text(model);
    write("model.safetensors.index.json",
          checkpoint::index_text({{"a.weight", "../secret.safetensors"}}, 0));
    EXPECT_EQ(read().error().code, Errc::checkpoint_unsafe_name);
}

TEST_F(HostileFiles, ATruncatedFileIsAnErrorNotASignal) {
    std::filesystem::remove(path);
    ASSERT_TRUE(save(model, {1, 0}, path, {}, {reactor}));
    HuggingFaceStorageReader reader(path, {}, reactor);
    const Metadata metadata = reader.read_metadata().value();
    const std::string file = path + "/model-00001-of-00001.safetensors";
    std::filesystem::resize_file(file, 5000);
    std::vector<std::byte> memory(model[3].bytes.size());
    DefaultLoadPlanner planner(
        {{.fqn = model[3].name, .data = {.data = memory.data(), .shape = model[3].shape}}});
    auto loaded = reader.read_data(planner.create_local_plan(metadata).value(), planner);
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().code, Errc::io_unexpected_end) << loaded.error().message();
}

// So that the file system can be unmounted at once.
TEST_F(HostileFiles, NothingStaysOpenAfterAReader) {
    const auto is_open = [&] {
        for (const auto& each : std::filesystem::directory_iterator("/proc/self/fd")) {
            std::error_code gone; // the descriptor of this very loop
            if (std::filesystem::read_symlink(each, gone).string().starts_with(path))
                return true;
        }
        return false;
    };
    std::filesystem::remove(path);
    ASSERT_TRUE(save(model, {3, 1}, path, {}, {reactor}));
    for (int i = 0; i < 200; ++i) {
        {
            HuggingFaceStorageReader reader(path, {}, reactor);
            ASSERT_TRUE(reader.read_metadata());
            EXPECT_TRUE(is_open());
        }
        ASSERT_FALSE(is_open());
    }
}

TEST_F(HostileFiles, ADirectoryWithoutPermissionIsNamed) {
    std::filesystem::remove(path);
    const std::string locked = "/proc/safering-test";
    auto saved = save(model, {1, 0}, locked, {}, {reactor});
    ASSERT_FALSE(saved);
    EXPECT_NE(saved.error().message().find("/proc"), std::string::npos) << saved.error().message();
}

} // namespace
} // namespace safering::test
