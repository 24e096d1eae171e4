// Real file systems: power cuts at random moments, every degree of fullness, and those that grant less.
// An option, `tools/test --mounts`: MOUNTS_CUTS=n power cuts on each, MOUNTS_SEED=s.
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <random>
#include <set>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "../checkpoint/model.hpp"
#include "../crash/recovery.hpp"
#include "../environment.hpp"
#include "mounted.hpp"

namespace safering::test {
namespace {

const FileSystemKind ext4{"ext4", "mkfs.ext4 -q -F -m 0", std::uint64_t{64} << 20};
const FileSystemKind xfs{"xfs", "mkfs.xfs -q -f", std::uint64_t{320} << 20};
const FileSystemKind tmpfs{"tmpfs", "", std::uint64_t{64} << 20};
// Neither O_DIRECT nor fallocate; and, without extents, ext4 without fallocate.
const FileSystemKind ramfs{"ramfs", "", std::uint64_t{64} << 20};
const FileSystemKind ext2{"ext4", "mkfs.ext4 -q -F -m 0 -O ^extent,^64bit",
                          std::uint64_t{64} << 20};

Model model_of(std::uint64_t seed) {
    return with_seed(seed, {make_tensor("a", Dtype::bf16, {64, 1030}, 4 * seed),
                            make_tensor("b", Dtype::u8, {37, 4096}, 4 * seed + 1),
                            make_tensor("c", Dtype::f32, {33}, 4 * seed + 2)});
}

std::shared_ptr<Reactor> make_reactor() {
    return value_or_throw(
        Reactor::create({.buffer_bytes = std::size_t{32} << 10, .buffer_count = 3}));
}

// Which model lies there; an error's text where none does, or not the whole of it.
struct Found {
    std::optional<std::uint64_t> seed;
    std::string problem;
};
Found found_in(const std::string& target, const std::shared_ptr<Reactor>& reactor) {
    const auto loaded = load_model(target, reactor);
    if (!loaded)
        return {{}, loaded.error().message()};
    if (const auto seed = seed_of(*loaded))
        return {seed, difference(model_of(*seed), *loaded)};
    return {{}, "it has no seed"};
}

class MountsTest : public testing::Test {
  protected:
    bool mount(const FileSystemKind& kind) {
        if (std::getenv("MOUNTS_CUTS") == nullptr) {
            reason = "an option: tools/test --mounts";
            return false;
        }
        try {
            mounted.emplace(kind);
            return true;
        } catch (const std::runtime_error& error) {
            reason = error.what();
            return false;
        }
    }
    std::string target() const { return mounted->path() + "/step"; }
    std::set<std::string> names() const {
        std::set<std::string> found;
        for (const auto& entry : std::filesystem::directory_iterator(mounted->path()))
            if (entry.path().filename() != "lost+found")
                found.insert(entry.path().filename());
        return found;
    }
    void cut_again_and_again(const FileSystemKind& kind);
    void fill_by_degrees(const FileSystemKind& kind);
    void save_and_load(const FileSystemKind& kind, bool direct, bool allocate);

    std::optional<Mounted> mounted;
    std::string reason;
};

// What the process that saves has been told, in memory that outlives it.
struct Progress {
    std::atomic<std::uint64_t> begun;
    std::atomic<std::uint64_t> saved;
};

Progress* share_progress() {
    void* memory = ::mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        throw std::runtime_error("mmap");
    return new (memory) Progress{};
}

// Saves one model after the other until the power goes.
[[noreturn]] void save_until_the_end(const std::string& target, Progress& progress,
                                     std::uint64_t seed) {
    const auto reactor = make_reactor();
    for (;; ++seed) {
        progress.begun = seed;
        const Sharding sharding{1 + static_cast<std::uint32_t>(seed % 3), seed % 2};
        const WriterOptions options{.layout =
                                        seed % 5 == 0 ? FileLayout::sharded : FileLayout::full};
        if (const auto saved = save(model_of(seed), sharding, target, options, {reactor}); !saved)
            ::_exit(0);
        progress.saved = seed;
    }
}

void MountsTest::cut_again_and_again(const FileSystemKind& kind) {
    if (!mount(kind))
        GTEST_SKIP() << reason;
    const std::uint64_t seed = from_environment("MOUNTS_SEED", 1);
    const std::uint64_t cuts = from_environment("MOUNTS_CUTS", 4);
    std::mt19937_64 random(seed);
    Progress& progress = *share_progress();
    std::uint64_t before = 0, replaced = 0; // what lay there
    for (std::uint64_t cut = 0; cut < cuts; ++cut) {
        SCOPED_TRACE(fmt::format("cut {} on {}, MOUNTS_SEED={}", cut, kind.type, seed));
        progress.saved = before;
        const pid_t child = ::fork();
        ASSERT_GE(child, 0);
        if (child == 0)
            save_until_the_end(target(), progress, before + 1);
        while (progress.begun <= before) // it has begun; then any moment
            ::usleep(1000);
        ::usleep(static_cast<useconds_t>(random() % 200'000));
        mounted->cut_power(random() % 2 == 0);
        const std::uint64_t saved_then = progress.saved;
        int status = 0;
        ASSERT_EQ(::waitpid(child, &status, 0), child);
        EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "status " << status;
        if (!mounted->mount_again())
            GTEST_SKIP() << "somebody keeps the file system busy, after " << cut << " cuts";
        const Found found = found_in(target(), make_reactor());
        const std::uint64_t saved = progress.saved, begun = progress.begun;
        EXPECT_GE(saved, saved_then);
        if (saved == 0 && !found.seed) { // the very first was cut off
            EXPECT_FALSE(std::filesystem::exists(target())) << found.problem;
            continue;
        }
        ASSERT_EQ(found.problem, "");
        EXPECT_TRUE(*found.seed == saved || *found.seed == begun)
            << *found.seed << "; saved " << saved << ", begun " << begun;
        replaced += *found.seed > before + 1;
        before = begun; // seeds never come again
        const auto saved_again = save(model_of(before), {1, 0}, target(), {}, {make_reactor()});
        ASSERT_TRUE(saved_again) << saved_again.error().message();
        EXPECT_EQ(names(), std::set<std::string>{"step"});
    }
    fmt::print("{}: {} cuts, {} of them after a replacement\n", kind.type, cuts, replaced);
}

TEST_F(MountsTest, PowerCutsOnExt4) {
    cut_again_and_again(ext4);
}

TEST_F(MountsTest, PowerCutsOnXfs) {
    cut_again_and_again(xfs);
}

// A file that takes all but `left` bytes.
void fill_up_to(const Mounted& mounted, std::uint64_t left) {
    const std::string ballast = mounted.path() + "/ballast";
    const int file = ::open(ballast.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    ASSERT_GE(file, 0);
    // What was removed, xfs gives back later: until then it counts as taken.
    ASSERT_EQ(::syncfs(file), 0);
    std::uint64_t held = 0;
    for (std::uint64_t step = std::uint64_t{16} << 20; step >= 4096;) {
        const std::uint64_t free = mounted.free_bytes();
        if (free < left + step ||
            ::fallocate(file, 0, static_cast<off_t>(held), static_cast<off_t>(step)) != 0)
            step /= 2;
        else
            held += step;
    }
    ::close(file);
}

void MountsTest::fill_by_degrees(const FileSystemKind& kind) {
    if (!mount(kind))
        GTEST_SKIP() << reason;
    constexpr std::uint64_t levels = 64;
    const auto reactor = make_reactor();
    std::uint64_t old = 1, failed = 0;
    ASSERT_TRUE(save(model_of(old), {2, 0}, target(), {}, {reactor}));
    // From nothing to half as much again as a save takes; xfs keeps some hundred KiB of what it calls free for itself.
    const std::uint64_t most = std::uint64_t{kind.type == "xfs" ? 1000u : 450u} << 10;
    for (std::uint64_t level = 0; level < levels; ++level) {
        SCOPED_TRACE(fmt::format("level {} on {}", level, kind.type));
        fill_up_to(*mounted, most * level / (levels - 1));
        const std::uint64_t fresh = level + 2;
        const auto saved = save(model_of(fresh), {2, level % 2}, target(), {}, {reactor});
        if (!saved) {
            EXPECT_EQ(saved.error().code, std::errc::no_space_on_device) << saved.error().message();
            ++failed;
        }
        const Found found = found_in(target(), reactor);
        ASSERT_EQ(found.problem, "");
        // The commit's last steps may want of room when all is in place.
        EXPECT_TRUE(*found.seed == (saved ? fresh : old) || (!saved && *found.seed == fresh))
            << *found.seed;
        old = *found.seed;
        std::filesystem::remove(mounted->path() + "/ballast");
        EXPECT_EQ(names(), std::set<std::string>{"step"});
    }
    EXPECT_GT(failed, levels / 8);
    EXPECT_LT(failed, levels);
    fmt::print("{}: {} of {} levels were too full\n", kind.type, failed, levels);
}

TEST_F(MountsTest, FullToEveryDegreeOnExt4) {
    fill_by_degrees(ext4);
}

TEST_F(MountsTest, FullToEveryDegreeOnXfs) {
    fill_by_degrees(xfs);
}

TEST_F(MountsTest, FullToEveryDegreeOnTmpfs) {
    fill_by_degrees(tmpfs);
}

void MountsTest::save_and_load(const FileSystemKind& kind, bool direct, bool allocate) {
    if (!mount(kind))
        GTEST_SKIP() << reason;
    const auto reactor = make_reactor();
    const auto info = value_or_throw(reactor->file_system(mounted->path()));
    EXPECT_EQ(info.direct, direct);
    EXPECT_EQ(info.allocate, allocate);
    for (const std::uint64_t seed : {1, 2}) {
        const auto saved = save(model_of(seed), {2, seed % 2}, target(), {}, {reactor});
        ASSERT_TRUE(saved) << saved.error().message();
        EXPECT_EQ(saved->notes.empty(), direct && allocate);
        const Found found = found_in(target(), reactor);
        EXPECT_EQ(found.problem, "");
        EXPECT_EQ(found.seed, seed);
    }
    EXPECT_EQ(names(), std::set<std::string>{"step"});
}

TEST_F(MountsTest, WithoutDirectNorAllocate) {
    save_and_load(ramfs, false, false);
}

TEST_F(MountsTest, WithoutAllocate) {
    save_and_load(ext2, true, false);
}

} // namespace
} // namespace safering::test
