// A changed byte is reported, not loaded: each byte of header, manifest and index, 10,000 bits of data, every length
// of a file that was cut short. DAMAGE_SEED=s draws other bits.
#include <random>

#include <gtest/gtest.h>

#include <fmt/format.h>

#include "../crash/scenarios.hpp"
#include "../environment.hpp"
#include "../faults/stage.hpp"
#include "checkpoint/attempt.hpp"
#include "safetensors/header.hpp"

namespace safering::test {
namespace {

const std::string place = "/ckpt/step";

// Some cells of 4096 bytes, a tensor that begins inside one, and an inner shard.
Model saved() {
    return {make_tensor("a.weight", Dtype::bf16, {32, 48}, 1),
            make_tensor("b.bias", Dtype::f32, {33}, 2), make_tensor("c.scale", Dtype::f32, {}, 3),
            make_tensor("d.block", Dtype::u8, {1, 4096}, 4)};
}

std::uint64_t seed() {
    return from_environment("DAMAGE_SEED", 1);
}

class ChangedBytes : public testing::TestWithParam<bool> {
  protected:
    ChangedBytes() {
        const WriterOptions sharded{.layout = FileLayout::sharded};
        const WriterOptions options = GetParam() ? sharded : two_files(saved());
        stage.set(disk_with(saved(), {2, 1}, options)->now());
        for (const std::string& name : stage.names(place))
            files.emplace_back(name, stage.disk->read_file(place + "/" + name));
    }

    std::uint64_t data_begin(const std::vector<std::byte>& file) const {
        const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
        return safetensors::parse_head(text, file.size(), "f").value().data_begin;
    }
    void put(const std::string& name, std::span<const std::byte> bytes) {
        stage.disk->write_file(place + "/" + name, bytes);
    }
    // "" where both the load and verify find it.
    std::string missed() {
        ++checked;
        std::string out;
        if (const auto loaded = load_model(place, stage.reactor))
            out += "the load does not find it";
        const auto verified = verify_checkpoint(place, *stage.reactor);
        if (verified && verified->findings.empty())
            out += " verify does not find it";
        return out;
    }
    // Flips a bit of the byte at `at`.
    std::string missed_with_flip(const std::string& name, std::vector<std::byte>& bytes,
                                 std::uint64_t at, unsigned bit) {
        bytes[at] ^= std::byte(1u << bit);
        put(name, bytes);
        const std::string out = missed();
        bytes[at] ^= std::byte(1u << bit);
        return out;
    }

    Stage stage;
    std::vector<std::pair<std::string, std::vector<std::byte>>> files;
    std::mt19937_64 random{seed()};
    std::uint64_t checked = 0;
};

TEST_P(ChangedBytes, EachOfHeaderManifestAndIndexIsFound) {
    for (auto& [name, bytes] : files) {
        const std::uint64_t end =
            checkpoint::is_safe_file_name(name) ? data_begin(bytes) : bytes.size();
        for (std::uint64_t at = 0; at < end; ++at) {
            // The spaces that pad a header: all of them in one of the layouts.
            if (GetParam() && bytes[at] == std::byte(' ') && at % 16 != 0)
                continue;
            const auto bit = static_cast<unsigned>(random() % 8);
            ASSERT_EQ(missed_with_flip(name, bytes, at, bit), "")
                << name << " byte " << at << " bit " << bit;
        }
        put(name, bytes);
    }
    fmt::print("{} bytes, each found by load and verify\n", checked);
    EXPECT_EQ(difference(saved(), load_model(place, stage.reactor).value()), "");
}

TEST_P(ChangedBytes, TenThousandBitsOfDataAreFound) {
    std::uint64_t total = 0;
    for (const auto& [name, bytes] : files)
        if (checkpoint::is_safe_file_name(name))
            total += bytes.size() - data_begin(bytes);
    for (auto& [name, bytes] : files) {
        if (!checkpoint::is_safe_file_name(name))
            continue;
        const std::uint64_t begin = data_begin(bytes);
        // 10,000 in both layouts together, by size.
        const std::uint64_t wanted = 5000 * (bytes.size() - begin) / total + 1;
        for (std::uint64_t i = 0; i < wanted; ++i) {
            const std::uint64_t at = begin + random() % (bytes.size() - begin);
            const auto bit = static_cast<unsigned>(random() % 8);
            ASSERT_EQ(missed_with_flip(name, bytes, at, bit), "")
                << name << " byte " << at << " bit " << bit << " DAMAGE_SEED=" << seed();
        }
        put(name, bytes);
    }
    fmt::print("{} bits, each found by load and verify; seed {}\n", checked, seed());
    EXPECT_GE(checked, 5000u);
}

TEST_P(ChangedBytes, EveryShorterLengthIsFound) {
    for (const auto& [name, bytes] : files) {
        for (std::uint64_t length = 0; length < bytes.size(); ++length) {
            // All of them for one of the data files, and for the records.
            if ((GetParam() || name.starts_with("model-00001")) && length % 16 != 0)
                continue;
            put(name, std::span(bytes).first(length));
            ASSERT_EQ(missed(), "") << name << " cut to " << length;
        }
        std::vector<std::byte> longer = bytes;
        longer.push_back(std::byte{0});
        put(name, longer);
        ASSERT_EQ(missed(), "") << name << " with a byte more";
        put(name, bytes);
    }
    fmt::print("{} lengths, each found by load and verify\n", checked);
}

// Loads of boxes: no changed byte is handed out, whichever cells they cover.
TEST_P(ChangedBytes, PartsAreNeverLoadedChanged) {
    std::uint64_t found = 0;
    for (int i = 0; i < 1000; ++i) {
        auto& [name, bytes] = files[random() % files.size()];
        if (!checkpoint::is_safe_file_name(name))
            continue;
        const std::uint64_t begin = data_begin(bytes);
        const std::uint64_t at = begin + random() % (bytes.size() - begin);
        const auto mask = std::byte(1u << random() % 8);
        bytes[at] ^= mask;
        put(name, bytes);
        const Model whole = saved();
        const TestTensor& tensor = whole[random() % whole.size()];
        ChunkStorageMetadata box{Shape(tensor.shape.size(), 0), tensor.shape};
        for (std::size_t d = 0; d < box.sizes.size(); ++d) {
            box.offsets[d] = random() % tensor.shape[d];
            box.sizes[d] = 1 + random() % (tensor.shape[d] - box.offsets[d]);
        }
        HuggingFaceStorageReader reader(place, {.verification = Verification::all}, stage.reactor);
        const Metadata metadata = reader.read_metadata().value();
        std::vector<std::byte> memory(byte_size(tensor.dtype, box.sizes).value());
        DefaultLoadPlanner planner(
            {{.fqn = tensor.name,
              .data = {.data = memory.data(), .dtype = tensor.dtype, .shape = box.sizes},
              .size = tensor.shape,
              .offsets = box.offsets}});
        const auto loaded = reader.read_data(planner.create_local_plan(metadata).value(), planner);
        found += loaded ? 0 : 1;
        if (loaded) {
            ASSERT_EQ(memory, bytes_of(tensor, box))
                << name << " byte " << at << " DAMAGE_SEED=" << seed();
        } else {
            ASSERT_EQ(loaded.error().code, Errc::checkpoint_digest_mismatch);
        }
        bytes[at] ^= mask;
        put(name, bytes);
    }
    EXPECT_GT(found, 50u);
    EXPECT_LT(found, 1000u);
}

TEST_P(ChangedBytes, WithoutAManifestVerifySaysWhatItCouldNotCheck) {
    const std::string manifest = place + "/" + std::string(checkpoint::manifest_name);
    ASSERT_FALSE(stage.reactor->wait({.op = Opcode::unlink, .path = manifest}).error);
    const auto verified = verify_checkpoint(place, *stage.reactor);
    ASSERT_TRUE(verified) << verified.error().message();
    EXPECT_TRUE(verified->findings.empty());
    EXPECT_EQ(verified->verified_bytes, 0u);
    ASSERT_FALSE(verified->unchecked.empty());
    EXPECT_TRUE(verified->unchecked[0].contains(checkpoint::manifest_name))
        << verified->unchecked[0];
}

INSTANTIATE_TEST_SUITE_P(Layouts, ChangedBytes, testing::Bool(),
                         [](const auto& layout) { return layout.param ? "Shards" : "Files"; });

} // namespace
} // namespace safering::test
