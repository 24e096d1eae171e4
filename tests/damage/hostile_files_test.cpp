// On a real file system: what is no regular file where one is expected, names that lead elsewhere, files that change
// while they are read, and sizes that are meant to hurt. Each is an error, soon and in little memory.
#include <filesystem>
#include <fstream>
#include <thread>

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include <fmt/format.h>

#include "../checkpoint/model.hpp"
#include "../crash/recovery.hpp"
#include "checkpoint/attempt.hpp"
#include "checkpoint/commit.hpp"
#include "checkpoint/strict_json.hpp"

namespace safering::test {
namespace {

namespace fs = std::filesystem;

Model model() {
    return {make_tensor("a", Dtype::u8, {2, 3000}, 1), make_tensor("b", Dtype::f32, {33}, 2)};
}

// Peak memory of this process above what it was, in bytes; 0 where the kernel does not tell, and under sanitizers, whose
// own memory it would be.
class PeakMemory {
  public:
    PeakMemory() {
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
        std::ofstream reset("/proc/self/clear_refs");
        known_ = (reset << "5" << std::flush).good();
#endif
        before_ = field("VmRSS:");
    }
    std::uint64_t grown() const {
        const std::uint64_t peak = field("VmHWM:");
        return known_ && peak > before_ ? peak - before_ : 0;
    }

  private:
    static std::uint64_t field(const std::string& name) {
        std::ifstream status("/proc/self/status");
        for (std::string word; status >> word;)
            if (word == name) {
                std::uint64_t kib = 0;
                status >> kib;
                return kib << 10;
            }
        return 0;
    }
    bool known_ = false;
    std::uint64_t before_ = 0;
};

class HostileFiles : public testing::Test {
  protected:
    HostileFiles() {
        const auto* info = testing::UnitTest::GetInstance()->current_test_info();
        root = fs::absolute(fmt::format("damage-{}-{}", info->name(), ::getpid()));
        fs::create_directories(root);
        reactor = value_or_throw(Reactor::create({.buffer_bytes = 1 << 20, .buffer_count = 2}));
        target = root / "step";
        value_or_throw(save(model(), {1, 0}, target, {}, {reactor}));
    }
    ~HostileFiles() override { fs::remove_all(root); }

    static void write(const fs::path& path, std::string_view text) {
        fs::create_directories(path.parent_path());
        fs::remove_all(path);
        std::ofstream(path, std::ios::binary) << text;
    }
    // The error of a load, and verify says something too.
    Error refused() {
        auto loaded = load_model(target, reactor);
        const auto verified = verify_checkpoint(target, *reactor);
        EXPECT_TRUE(!verified || !verified->findings.empty());
        EXPECT_FALSE(loaded);
        return loaded ? Error{} : loaded.error();
    }

    fs::path root;
    fs::path target;
    std::shared_ptr<Reactor> reactor;
    const std::string data = "model-00001-of-00001.safetensors";
    const std::string redo_record = checkpoint::redo_path(".", std::string(32, 'a'));
};

TEST_F(HostileFiles, WhatIsNoFileIsRefusedWithoutWaiting) {
    const std::vector<std::string> names{data, std::string(checkpoint::manifest_name),
                                         std::string(checkpoint::index_name), redo_record};
    for (const std::string& name : names) {
        const fs::path path = target / name;
        fs::create_directories(path.parent_path());
        const fs::path kept = root / "kept";
        const bool there = fs::exists(path);
        if (there)
            fs::rename(path, kept);
        ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
        Error error = refused();
        EXPECT_EQ(error.code, Errc::checkpoint_not_a_file) << name << ": " << error.message();
        fs::remove(path);
        fs::create_directory(path);
        error = refused();
        EXPECT_EQ(error.code, Errc::checkpoint_not_a_file) << name << ": " << error.message();
        fs::remove(path);
        for (const char* device : {"/dev/zero", "/dev/null"}) {
            fs::create_symlink(device, path);
            error = refused();
            EXPECT_TRUE(error.code == Errc::checkpoint_not_a_file ||
                        error.code == std::errc::too_many_symbolic_link_levels)
                << name << " -> " << device << ": " << error.message();
            fs::remove(path);
        }
        fs::create_symlink(path, path);
        error = refused();
        EXPECT_EQ(error.code, std::errc::too_many_symbolic_link_levels) << name;
        fs::remove(path);
        fs::create_symlink("nowhere", path);
        (void)refused();
        fs::remove(path);
        if (there)
            fs::rename(kept, path);
    }
    EXPECT_EQ(difference(model(), load_model(target, reactor).value()), "");
}

// A switch is found in directories of our own making only: what lies behind a link is not ours to move or remove.
TEST_F(HostileFiles, ASwitchIsNotFollowedThroughLinks) {
    const std::string attempt(32, 'a');
    const fs::path elsewhere = root / "elsewhere";
    const checkpoint::RedoRecord record{
        attempt, ".step." + attempt + ".tmp", {data}, {"precious.safetensors"}};
    write(elsewhere / "redo" / attempt / checkpoint::redo_record_name, checkpoint::to_text(record));
    write(elsewhere / "precious.safetensors", "precious");
    const fs::path redo = target / checkpoint::redo_name;
    fs::create_symlink(elsewhere / "redo", redo);
    EXPECT_EQ(refused().code, Errc::checkpoint_not_a_file);
    fs::remove(redo);
    fs::create_directory(redo);
    fs::create_symlink(elsewhere / "redo" / attempt, redo / attempt);
    EXPECT_EQ(refused().code, Errc::checkpoint_not_a_file);
    EXPECT_TRUE(fs::exists(elsewhere / "precious.safetensors"));
    for (const char* kind : {"fifo", "device", "loop"}) {
        fs::remove_all(redo);
        if (kind == std::string_view("fifo"))
            ASSERT_EQ(::mkfifo(redo.c_str(), 0600), 0);
        else
            fs::create_symlink(kind == std::string_view("loop") ? redo : "/dev/zero", redo);
        EXPECT_TRUE(refused().code) << kind;
    }
    // A record of another attempt than its directory says.
    fs::remove_all(redo);
    write(redo / std::string(32, 'b') / checkpoint::redo_record_name, checkpoint::to_text(record));
    EXPECT_EQ(refused().code, Errc::checkpoint_bad_manifest);
    // What a crash leaves of a switch that was done is no obstacle, and goes.
    fs::remove(redo / std::string(32, 'b') / checkpoint::redo_record_name);
    EXPECT_EQ(difference(model(), load_model(target, reactor).value()), "");
    EXPECT_FALSE(fs::exists(redo));
}

TEST_F(HostileFiles, ASaveNeverWritesThroughALink) {
    write(root / "precious", "precious");
    for (const std::string& name :
         {data, std::string(checkpoint::manifest_name), std::string(checkpoint::index_name)}) {
        fs::remove(target / name);
        fs::create_symlink("../precious", target / name);
    }
    const auto saved = save(model(), {1, 0}, target, {}, {reactor});
    ASSERT_TRUE(saved) << saved.error().message();
    std::string text;
    std::ifstream(root / "precious") >> text;
    EXPECT_EQ(text, "precious");
    EXPECT_FALSE(fs::is_symlink(target / data));
    EXPECT_EQ(difference(model(), load_model(target, reactor).value()), "");
}

TEST_F(HostileFiles, NamesThatLeadElsewhereAreRefused) {
    fs::copy_file(target / data, root / data);
    fs::remove(target / checkpoint::manifest_name);
    for (const std::string& name :
         {"../" + data, (root / data).string(), std::string("./") + data, std::string(".."),
          std::string(), data + std::string("\\u0000.safetensors"), std::string("a/../") + data}) {
        write(target / checkpoint::index_name,
              R"({"metadata":{},"weight_map":{"a":")" + name + R"(","b":")" + name + R"("}})");
        EXPECT_EQ(refused().code, Errc::checkpoint_unsafe_name) << name;
        write(
            target / checkpoint::manifest_name,
            checkpoint::seal_json(
                R"({"safering_manifest":1,"attempt":"0123456789abcdef0123456789abcdef","layout":"full",)"
                R"("digest":"none","chunk_bytes":4096,"files":[{"name":")" +
                name + R"(","size":8,"head":8,"head_digest":"0000000000000000","extents":[]}])"));
        EXPECT_EQ(refused().code, Errc::checkpoint_unsafe_name) << name;
        fs::remove(target / checkpoint::manifest_name);
    }
}

TEST_F(HostileFiles, AFileThatIsCutWhileItIsReadIsAnError) {
    for (const bool with_manifest : {true, false}) {
        if (!with_manifest)
            fs::remove(target / checkpoint::manifest_name);
        HuggingFaceStorageReader reader(target, {}, reactor);
        const Metadata metadata = reader.read_metadata().value();
        std::vector<std::byte> memory(6000);
        const auto load = [&] {
            DefaultLoadPlanner planner(
                {{.fqn = "a",
                  .data = {.data = memory.data(), .dtype = Dtype::u8, .shape = {2, 3000}},
                  .size = {2, 3000},
                  .offsets = {0, 0}}});
            return reader.read_data(planner.create_local_plan(metadata).value(), planner);
        };
        const auto size = fs::file_size(target / data);
        fs::resize_file(target / data, 5000);
        const auto cut = load();
        ASSERT_FALSE(cut);
        EXPECT_TRUE(cut.error().code == Errc::io_unexpected_end) << cut.error().message();
        EXPECT_EQ(cut.error().file, target / data);
        fs::resize_file(target / data, size);
        if (with_manifest) { // zeros now
            EXPECT_EQ(load().error().code, Errc::checkpoint_digest_mismatch);
            value_or_throw(save(model(), {1, 0}, target, {}, {reactor}));
        }
    }
}

// What was opened is read, whatever takes its name meanwhile.
TEST_F(HostileFiles, AFileThatIsReplacedWhileItIsReadStaysTheOld) {
    HuggingFaceStorageReader reader(target, {}, reactor);
    const Metadata metadata = reader.read_metadata().value();
    write(target / data, "something else");
    std::vector<std::byte> memory(6000);
    DefaultLoadPlanner planner(
        {{.fqn = "a",
          .data = {.data = memory.data(), .dtype = Dtype::u8, .shape = {2, 3000}},
          .size = {2, 3000},
          .offsets = {0, 0}}});
    const auto loaded = reader.read_data(planner.create_local_plan(metadata).value(), planner);
    ASSERT_TRUE(loaded) << loaded.error().message();
    EXPECT_EQ(memory, model()[0].bytes);
}

std::string head(const std::string& json) {
    std::string out(8, '\0');
    for (std::size_t i = 0; i < 8; ++i)
        out[i] = static_cast<char>(json.size() >> 8 * i & 0xFF);
    return out + json;
}

// Memory is bounded by the size of the text, and a bomb by far less than it asks for.
TEST_F(HostileFiles, BombsAreRefusedInLittleMemory) {
    constexpr std::uint64_t mebi = 1 << 20;
    std::string keys = "{";
    for (int i = 0; i < 1'100'000; ++i)
        keys += fmt::format(R"({}"{:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})",
                            i == 0 ? "" : ",", i);
    keys += "}";
    const std::string brackets(100 * mebi, '[');
    std::string zeros;
    for (std::uint64_t i = 0; i < 45 * mebi; ++i)
        zeros += "0,";
    const std::string offsets =
        R"({"__metadata__":{"DCP_SHARDING_INFO":"{\"a\":{\"saved_offsets\":[)" + zeros +
        R"(0]}}"}})";
    struct Bomb {
        std::string what;
        std::string name;
        std::string text;
        std::uint64_t most_bytes;
    };
    const std::vector<Bomb> bombs{
        {"brackets in a header", data, head(brackets.substr(0, 99'999'000)), 300 * mebi},
        {"brackets in a manifest", std::string(checkpoint::manifest_name), brackets, 300 * mebi},
        {"brackets in an index", std::string(checkpoint::index_name), brackets, 300 * mebi},
        {"brackets in a redo record", redo_record, brackets, 300 * mebi},
        {"a sealed manifest of brackets", std::string(checkpoint::manifest_name),
         checkpoint::seal_json("{\"a\":" + brackets), 600 * mebi},
        {"a million keys in a header", data, head(keys), 700 * mebi},
        {"a million offsets of a shard", data, head(offsets), 500 * mebi},
        {"a million keys in an index", std::string(checkpoint::index_name), keys, 1000 * mebi},
    };
    for (const Bomb& bomb : bombs) {
        for (const auto name : {checkpoint::manifest_name, checkpoint::index_name})
            fs::remove(target / name);
        write(target / bomb.name, bomb.text);
        const PeakMemory memory;
        const auto loaded = load_model(target, reactor);
        EXPECT_FALSE(loaded) << bomb.what;
        fmt::print("{}: {} MiB, {}\n", bomb.what, memory.grown() >> 20,
                   loaded ? "" : loaded.error().message().substr(0, 160));
        EXPECT_LT(memory.grown(), bomb.most_bytes) << bomb.what;
        fs::remove(target / bomb.name);
    }
}

TEST_F(HostileFiles, ATebibyteWithoutBytesIsRefusedInLittleMemory) {
    for (const std::string& name : {std::string(checkpoint::manifest_name),
                                    std::string(checkpoint::index_name), redo_record}) {
        const fs::path path = target / name;
        std::string kept;
        if (fs::exists(path)) {
            std::ifstream in(path);
            kept.assign(std::istreambuf_iterator<char>(in), {});
        }
        write(path, "{");
        if (::truncate(path.c_str(), std::int64_t{1} << 40) != 0)
            GTEST_SKIP() << "this file system has no files of 1 TiB";
        const PeakMemory memory;
        EXPECT_EQ(refused().code, Errc::checkpoint_over_budget) << name;
        EXPECT_LT(memory.grown(), 64u << 20);
        fs::remove(path);
        if (!kept.empty())
            write(path, kept);
    }
    fs::remove(target / checkpoint::manifest_name);
    fs::remove(target / checkpoint::index_name);
    ASSERT_EQ(::truncate((target / data).c_str(), std::int64_t{1} << 40), 0);
    const PeakMemory memory;
    EXPECT_EQ(refused().code, Errc::header_trailing_data);
    EXPECT_LT(memory.grown(), 64u << 20);
}

} // namespace
} // namespace safering::test
