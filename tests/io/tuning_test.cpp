// What is measured of a file system: the choice, the cache and what it refuses, and that measuring leaves nothing.
#include <algorithm>
#include <fstream>
#include <iterator>

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <safering/tuning.hpp>

#include "../cache_home.hpp"
#include "backends.hpp"
#include "io/mount_name.hpp"

namespace safering::test {
namespace {

TuningRow row(unsigned in_flight, double write_rate, double read_rate, unsigned threads = 2) {
    return {.block_bytes = 4 << 20,
            .in_flight = in_flight,
            .threads = threads,
            .write_rate = write_rate,
            .read_rate = read_rate};
}

TuningRow small_row(unsigned in_flight, double rate, unsigned threads = 2) {
    TuningRow out = row(in_flight, rate, rate, threads);
    out.block_bytes = 1 << 20;
    return out;
}

unsigned chosen_in_flight(const std::vector<TuningRow>& rows) {
    return rows[choose_row(rows)].in_flight;
}

TEST(TuningChoice, IsTheDefaultWhereNothingIsMuchBetter) {
    EXPECT_EQ(chosen_in_flight({row(4, 100, 100), row(8, 100, 100), row(16, 100, 100)}), 8u);
    EXPECT_EQ(chosen_in_flight({row(4, 103, 103), row(8, 100, 100), row(16, 102, 103)}), 8u);
    EXPECT_EQ(chosen_in_flight({row(8, 91, 98), row(16, 100, 100), row(32, 99, 99)}), 8u);
}

TEST(TuningChoice, IsTheLeastMemoryOfThoseNearTheBest) {
    EXPECT_EQ(chosen_in_flight({row(8, 50, 50), row(16, 98, 98), row(32, 100, 100)}), 16u);
    EXPECT_EQ(chosen_in_flight({row(32, 100, 100), row(8, 50, 50), row(16, 98, 98)}), 16u);
    EXPECT_EQ(chosen_in_flight({row(8, 50, 50), row(16, 96, 96), row(32, 100, 100)}), 32u);
    EXPECT_EQ(chosen_in_flight({row(4, 100, 100), row(8, 85, 85), row(16, 100, 100)}), 4u);
}

TEST(TuningChoice, LooksAtTheWorseDirection) {
    EXPECT_EQ(chosen_in_flight({row(8, 100, 50), row(16, 80, 80), row(32, 50, 100)}), 16u);
    // One direction alone is a reason to leave the default.
    EXPECT_EQ(chosen_in_flight({row(8, 100, 50), row(16, 100, 100)}), 16u);
}

TEST(TuningChoice, TakesFewerThreadsForTheSameMemory) {
    const std::vector<TuningRow> rows{row(8, 50, 50, 2), row(16, 100, 100, 16), row(16, 98, 99, 8)};
    EXPECT_EQ(rows[choose_row(rows)].threads, 8u);
    // As many buffers as by default, and other threads, are not the default.
    const std::vector<TuningRow> usual{row(8, 98, 98, 8), row(8, 100, 100, 2)};
    EXPECT_EQ(usual[choose_row(usual)].threads, 2u);
}

TEST(TuningChoice, TakesSmallRequestsOnlyWhereTheyAreMuchBetter) {
    EXPECT_EQ(chosen_in_flight({row(8, 95, 95), small_row(16, 100), small_row(32, 100)}), 8u);
    EXPECT_EQ(chosen_in_flight({row(8, 50, 50), row(16, 99, 99), small_row(32, 100)}), 32u);
    // The same memory: rather few requests than many.
    EXPECT_EQ(chosen_in_flight({row(4, 50, 50), row(16, 99, 99), small_row(64, 100)}), 16u);
    // As many bytes in flight as by default, and so as many buffers, are not the default.
    EXPECT_EQ(chosen_in_flight({small_row(32, 98), row(8, 100, 100)}), 8u);
}

TEST(TuningChoice, OfNothingAndOfDeadDisks) {
    EXPECT_EQ(choose_row(std::vector{row(4, 1, 1)}), 0u);
    EXPECT_EQ(chosen_in_flight({row(4, 0, 0), row(8, 0, 0), row(16, 0, 0)}), 8u);
}

TEST(TuningChoice, GivesTheDefaultsForTheDefaultRow) {
    const ReactorOptions usual, options = options_of(row(8, 1, 1));
    EXPECT_EQ(options.buffer_count, usual.buffer_count);
    EXPECT_EQ(options.buffer_bytes, usual.buffer_bytes);
    EXPECT_EQ(options.threads, usual.threads);
    EXPECT_EQ(options.queue_depth, usual.queue_depth);
    EXPECT_EQ(options_of(row(32, 1, 1)).buffer_count, 48u);
    EXPECT_EQ(options_of(small_row(64, 1)).buffer_count, 24u);
    EXPECT_EQ(options_of(small_row(64, 1)).transfer_bytes, std::size_t{1} << 20);
    EXPECT_EQ(options_of(small_row(1, 1)).buffer_count, 1u);
    EXPECT_EQ(options_of(row(200, 1, 1)).queue_depth, 200u);
    // Ranks may differ in what they choose, but every one must hold a cell of a plan.
    EXPECT_EQ(options_of(row(1, 1, 1)).buffer_bytes, usual.buffer_bytes);
}

TEST(MountName, IsFoundByItsId) {
    const std::string mounts =
        "21 1 254:1 / / rw,relatime - ext4 /dev/root rw\n"
        "121 21 0:45 / /mnt rw shared:1 master:2 - nfs4 server:/export rw,vers=4.2\n"
        "22 21 0:46 /a\\040b /c rw shared:3 - btrfs /dev/sdb\\0401 rw\n";
    const auto root = find_mount(mounts, 21), nfs = find_mount(mounts, 121);
    ASSERT_TRUE(root && nfs);
    EXPECT_EQ(root->type + root->source + root->root, "ext4/dev/root/");
    EXPECT_EQ(nfs->type + nfs->source + nfs->root, "nfs4server:/export/");
    EXPECT_EQ(find_mount(mounts, 22)->root, "/a\\040b");
    EXPECT_FALSE(find_mount(mounts, 2));
    EXPECT_FALSE(find_mount("", 1));
    EXPECT_FALSE(find_mount("1 2", 1));
    EXPECT_FALSE(find_mount("1 2 3 4 5 6 7 8", 1));
}

TEST(MountName, OfAPathThatIsNotThereYet) {
    const TemporaryDirectory directory;
    const std::string name = file_system_name(directory.path());
    EXPECT_FALSE(name.empty());
    EXPECT_EQ(file_system_name(directory / "run/step-1"), name);
    EXPECT_FALSE(file_system_name("not/there").empty());
}

class TuningCache : public testing::Test {
  protected:
    Tuning tuning(const std::string& measured = "2026-11-26T15:00:00Z") const {
        return {.file_system = file_system_name(directory.path()),
                .backend = BackendKind::threads,
                .measured = measured,
                .file_bytes = 32 << 20,
                .rows = {row(8, 1.5e9, 2.25e9), row(16, 3e9, 3e9)},
                .chosen = 1};
    }
    FoundTuning find(BackendKind backend = BackendKind::threads) const {
        return find_tuning(directory / "run/step-1", backend);
    }
    std::string stored_text() const {
        std::ifstream file(path);
        return {std::istreambuf_iterator<char>(file), {}};
    }
    void replace(const std::string& text) const { std::ofstream(path) << text; }
    static std::string changed(std::string text, const std::string& from, const std::string& to) {
        const std::size_t at = text.find(from);
        EXPECT_NE(at, std::string::npos) << from;
        return text.replace(at, from.size(), to);
    }

    const CacheHome home;
    const TemporaryDirectory directory;
    const std::string path = value_or_throw(store_tuning(tuning()));
};

TEST_F(TuningCache, GivesBackWhatWasStored) {
    EXPECT_TRUE(path.starts_with(home.path() + "/safering/tuning-")) << path;
    const FoundTuning found = find();
    ASSERT_TRUE(found.tuning) << found.reason;
    EXPECT_EQ(*found.tuning, tuning());
    EXPECT_EQ(found.reason, "");
    EXPECT_EQ(value_or_throw(store_tuning(tuning("2026-11-27T15:00:00Z"))), path);
    EXPECT_EQ(find().tuning, tuning("2026-11-27T15:00:00Z"));
    const std::filesystem::directory_iterator files(home.path() + "/safering");
    EXPECT_EQ(std::distance(begin(files), end(files)), 1);
}

TEST_F(TuningCache, CountsForItsBackendAlone) {
    const FoundTuning found = find(BackendKind::io_uring);
    EXPECT_FALSE(found.tuning);
    EXPECT_EQ(found.reason, "nothing was measured with io_uring");
    EXPECT_EQ(found.file_system, tuning().file_system);
}

TEST_F(TuningCache, IsLookedUpForAReactor) {
    const auto tuned =
        value_or_throw(create_tuned_reactor(directory.path(), BackendChoice::threads));
    EXPECT_EQ(tuned->info().buffer_count, 24u);
    EXPECT_EQ(tuned->info().transfer_bytes, std::size_t{4} << 20);
    EXPECT_EQ(tuned->info().origin, "measured 2026-11-26T15:00:00Z on " + tuning().file_system);
    replace("{}");
    const auto usual =
        value_or_throw(create_tuned_reactor(directory.path(), BackendChoice::threads));
    EXPECT_EQ(usual->info().buffer_count, ReactorOptions{}.buffer_count);
    EXPECT_EQ(usual->info().origin, "defaults");
    EXPECT_EQ(value_or_throw(Reactor::create())->info().origin, "");
}

TEST_F(TuningCache, IsTurnedOffByTheEnvironment) {
    ::setenv("SAFERING_TUNING", "off", 1);
    EXPECT_FALSE(find().tuning);
    EXPECT_EQ(find().reason, "SAFERING_TUNING is off");
    ::setenv("SAFERING_TUNING", "", 1);
    EXPECT_TRUE(find().tuning);
}

TEST_F(TuningCache, RefusesWhatIsDamaged) {
    const std::string good = stored_text();
    for (std::size_t size = 0; size + 2 < good.size(); ++size) { // without "}\n" it is whole
        replace(good.substr(0, size));
        ASSERT_FALSE(find().tuning) << size;
    }
    for (const char* text : {"[]", "null", "{", "\xff\xfe", "{\"safering_tuning\":1}"}) {
        replace(text);
        EXPECT_FALSE(find().tuning) << text;
        EXPECT_TRUE(find().reason.starts_with(path)) << find().reason;
    }
    replace(std::string(100'000, '['));
    EXPECT_TRUE(find().reason.contains("File too large")) << find().reason;
    replace(good);
    EXPECT_TRUE(find().tuning);
}

TEST_F(TuningCache, RefusesWhatWasNotMeasuredHere) {
    const std::string good = stored_text();
    for (const auto& [from, to] : std::vector<std::pair<std::string, std::string>>{
             {"\"safering_tuning\": 2", "\"safering_tuning\": 1"},
             {tuning().file_system, "ext4 /dev/other / on elsewhere"},
             {"\"threads\",", "\"io_uring\","},
             {"2026-11-26T15:00:00Z", "\\u001b[31m"},
             {"2026-11-26T15:00:00Z", ""},
             {"\"block_bytes\": 4194304", "\"block_bytes\": 8388608"},
             {"\"block_bytes\": 4194304", "\"block_bytes\": 0"},
             {"\"block_bytes\": 4194304", "\"block_bytes\": 4194303"},
             {"\"in_flight\": 16", "\"in_flight\": 0"},
             {"\"in_flight\": 16", "\"in_flight\": 1000000"},
             {"\"in_flight\": 16", "\"in_flight\": -8"},
             {"\"in_flight\": 16", "\"in_flight\": \"16\""},
             {"\"threads\": 2", "\"threads\": 100000"},
             {"\"read_rate\": 2250000000.0", "\"read_rate\": -1"},
             {"\"read_rate\": 2250000000.0", "\"read_rate\": 1e999"},
             {"\"rows\"", "\"lines\""},
             {"\"chosen\": 1", "\"chosen\": 2"}}) {
        replace(changed(good, from, to));
        EXPECT_FALSE(find().tuning) << to;
        EXPECT_TRUE(find().reason.starts_with(path)) << find().reason;
    }
}

TEST_F(TuningCache, IsNoneWhereItIsNoFile) {
    std::filesystem::remove(path);
    ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
    EXPECT_FALSE(find().tuning); // and does not wait for a writer
    std::filesystem::remove(path);
    std::filesystem::create_directory(path);
    EXPECT_FALSE(find().tuning);
    std::filesystem::remove(path);
    EXPECT_EQ(find().reason, "nothing was measured with threads");
}

TEST_F(TuningCache, SaysWhereItCannotBeKept) {
    const std::string file = home.path() + "/file";
    std::ofstream(file) << "no directory";
    ::setenv("XDG_CACHE_HOME", file.c_str(), 1);
    const auto stored = store_tuning(tuning());
    ASSERT_FALSE(stored);
    EXPECT_TRUE(stored.error().message().contains(file)) << stored.error().message();
    EXPECT_FALSE(find().tuning);

    ::setenv("XDG_CACHE_HOME", "relative", 1);
    ::unsetenv("HOME");
    EXPECT_FALSE(store_tuning(tuning()));
    EXPECT_FALSE(find().tuning);
    EXPECT_TRUE(find().reason.contains("HOME"));

    ::setenv("HOME", home.path().c_str(), 1);
    const auto kept = store_tuning(tuning());
    ASSERT_TRUE(kept) << kept.error().message();
    EXPECT_TRUE(kept->starts_with(home.path() + "/.cache/safering/"));
    EXPECT_TRUE(find().tuning);
}

TEST_F(TuningCache, IsWholeWhileProcessesWriteIt) {
    constexpr int writers = 3, times = 40;
    for (int writer = 0; writer < writers; ++writer)
        if (::fork() == 0) {
            int failed = 0;
            for (int i = 0; i < times; ++i)
                failed += store_tuning(tuning(std::string(std::size_t(writer) + 1, 'x'))) ? 0 : 1;
            ::_exit(failed == 0 ? 0 : 1);
        }
    int left = writers, status = 0;
    while (left > 0) {
        const FoundTuning found = find();
        EXPECT_TRUE(found.tuning) << found.reason;
        if (::waitpid(-1, &status, WNOHANG) > 0) {
            --left;
            EXPECT_EQ(status, 0);
        }
    }
    const std::filesystem::directory_iterator files(home.path() + "/safering");
    EXPECT_EQ(std::distance(begin(files), end(files)), 1) << "temporary files stay";
}

class Measuring : public testing::TestWithParam<BackendChoice> {};

TEST_P(Measuring, MeasuresEveryWayAndLeavesNothing) {
    const TemporaryDirectory directory;
    const auto reactor = Reactor::create({.backend = GetParam()});
    if (!reactor)
        GTEST_SKIP() << reactor.error().message();
    const auto measured =
        measure_tuning(directory.path(), {.backend = GetParam(), .file_bytes = 33 << 20});
    if (!value_or_throw((*reactor)->file_system(directory.path())).direct) {
        EXPECT_EQ(measured.error().code, std::errc::operation_not_supported);
        return;
    }
    ASSERT_TRUE(measured) << measured.error().message();
    EXPECT_EQ(measured->file_system, file_system_name(directory.path()));
    EXPECT_EQ(measured->backend, (*reactor)->info().backend);
    EXPECT_EQ(measured->file_bytes, 32u << 20);
    EXPECT_LT(measured->chosen, measured->rows.size());
    EXPECT_EQ(measured->chosen, choose_row(measured->rows));
    bool has_default = false;
    for (const TuningRow& each : measured->rows) {
        EXPECT_GT(each.write_rate, 0);
        EXPECT_GT(each.read_rate, 0);
        EXPECT_LE(each.in_flight * each.block_bytes, 32u << 20) << "more than the file holds";
        has_default |= options_of(each).buffer_count == ReactorOptions{}.buffer_count &&
                       each.threads == ReactorOptions{}.threads &&
                       each.block_bytes == ReactorOptions{}.buffer_bytes;
    }
    EXPECT_TRUE(has_default);
    EXPECT_TRUE(std::filesystem::is_empty(directory.path()));
}

TEST(MeasuringFails, SaysWhy) {
    const TemporaryDirectory directory;
    EXPECT_EQ(measure_tuning(directory.path(), {.file_bytes = 1 << 20}).error().code,
              std::errc::invalid_argument);
    const auto absent = measure_tuning(directory / "absent");
    EXPECT_EQ(absent.error().code, std::errc::no_such_file_or_directory);
    EXPECT_TRUE(absent.error().message().contains("absent"));
}

INSTANTIATE_TEST_SUITE_P(Backends, Measuring,
                         testing::Values(BackendChoice::io_uring, BackendChoice::threads),
                         [](const auto& choice) {
                             return choice.param == BackendChoice::threads ? "threads" : "io_uring";
                         });

} // namespace
} // namespace safering::test
