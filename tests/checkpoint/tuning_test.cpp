// Readers and writers that are given no reactor work as their file system was measured; those that are given one do not.
#include <gtest/gtest.h>

#include <safering/save_load.hpp>
#include <safering/tuning.hpp>

#include "../cache_home.hpp"
#include "model.hpp"

namespace safering::test {
namespace {

class Tuned : public testing::Test {
  protected:
    // For the backend that a default reactor gets here.
    std::string measure(unsigned in_flight, std::uint64_t block_bytes = 4 << 20) {
        const BackendKind backend = value_or_throw(Reactor::create())->info().backend;
        const Tuning tuning{
            .file_system = find_tuning(directory.path(), backend).file_system,
            .backend = backend,
            .measured = "2026-11-26T15:00:00Z",
            .file_bytes = 32 << 20,
            .rows = {{.block_bytes = block_bytes, .in_flight = in_flight, .threads = 3}},
            .chosen = 0};
        value_or_throw(store_tuning(tuning));
        return "measured 2026-11-26T15:00:00Z on " + tuning.file_system;
    }
    SaveReport save(std::shared_ptr<Reactor> reactor = nullptr) const {
        return save_file(path,
                         {{{"w", {.data = bytes.data(), .dtype = Dtype::u8, .shape = {4096}}}}}, {},
                         std::move(reactor));
    }

    const CacheHome home;
    const TemporaryDirectory directory;
    const std::string path = directory / "model.safetensors";
    const std::vector<std::byte> bytes{4096, std::byte{7}};
};

TEST_F(Tuned, NothingMeasuredIsTheDefaults) {
    const SaveReport saved = save();
    EXPECT_EQ(saved.reactor.origin, "defaults");
    EXPECT_EQ(saved.reactor.buffer_count, ReactorOptions{}.buffer_count);
    EXPECT_EQ(load_file(path).report.reactor.origin, "defaults");
}

TEST_F(Tuned, ReadersAndWritersTakeWhatWasMeasured) {
    const std::string origin = measure(5);
    const SaveReport saved = save();
    EXPECT_EQ(saved.reactor.origin, origin);
    EXPECT_EQ(saved.reactor.buffer_count, 7u);
    const LoadedFile loaded = load_file(path);
    EXPECT_EQ(loaded.report.reactor.origin, origin);
    EXPECT_EQ(loaded.report.reactor.buffer_count, 7u);
    EXPECT_EQ(loaded.tensors.at("w").data[4095], std::byte{7});
    HuggingFaceStorageReader reader(path);
    EXPECT_EQ(reader.reactor()->info().origin, origin);
    HuggingFaceStorageWriter writer(directory / "run/step-1");
    EXPECT_EQ(writer.reactor()->info().origin, origin);
}

TEST_F(Tuned, AGivenReactorWins) {
    measure(5);
    const std::shared_ptr<Reactor> given = value_or_throw(Reactor::create({.buffer_count = 3}));
    EXPECT_EQ(save(given).reactor.buffer_count, 3u);
    EXPECT_EQ(load_file(path, 0, given).report.reactor.buffer_count, 3u);
    EXPECT_EQ(load_file(path, 0, given).report.reactor.origin, "");
}

// Ranks need not have measured the same, nor at all.
TEST_F(Tuned, RanksMayDiffer) {
    const Model model{make_tensor("w", Dtype::u8, {32, 1 << 20}, 1)};
    measure(5);
    HuggingFaceStorageWriter tuned(directory / "step-1");
    ASSERT_EQ(tuned.reactor()->info().buffer_count, 7u);
    measure(3, 1 << 20);
    HuggingFaceStorageWriter narrow(directory / "step-1");
    ASSERT_EQ(narrow.reactor()->info().buffer_count, 1u);
    ASSERT_EQ(narrow.reactor()->info().transfer_bytes, 1u << 20);
    const auto usual = std::shared_ptr<Reactor>(value_or_throw(Reactor::create()));
    const auto saved = test::save(model, {3, 0}, directory / "step-1", {},
                                  {tuned.reactor(), narrow.reactor(), usual});
    ASSERT_TRUE(saved) << saved.error().message();
    EXPECT_EQ(differences(model, {2, 1}, directory / "step-1", narrow.reactor()), "");
}

} // namespace
} // namespace safering::test
