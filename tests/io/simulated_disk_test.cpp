// What a simulated power cut takes and leaves, and how the disk can be made to misbehave.
#include "io/simulated_disk.hpp"

#include <future>
#include <thread>

#include "backends.hpp"

namespace safering::test {

namespace {

using Kind = CrashPolicy::Kind;

class SimulatedDiskTest : public testing::Test {
  protected:
    int open(const std::string& path, OpenMode mode, Caching caching = Caching::buffered) {
        const Completion opened =
            reactor_->wait({.op = Opcode::open, .mode = mode, .caching = caching, .path = path});
        EXPECT_FALSE(opened.error) << opened.error.message();
        return static_cast<int>(opened.result);
    }
    std::error_code write(int file, std::string_view text, std::uint64_t offset = 0) {
        return reactor_
            ->wait({.op = Opcode::write,
                    .file = file,
                    .data = reinterpret_cast<std::byte*>(const_cast<char*>(text.data())),
                    .length = text.size(),
                    .offset = offset})
            .error;
    }
    std::error_code on_file(Opcode op, int file) {
        return reactor_->wait({.op = op, .file = file}).error;
    }
    std::error_code on_path(Opcode op, const std::string& path) {
        return reactor_->wait({.op = op, .path = path}).error;
    }
    std::error_code rename(const std::string& from, const std::string& to) {
        return reactor_->wait({.op = Opcode::rename, .replace = true, .path = from, .new_path = to})
            .error;
    }

    std::shared_ptr<SimulatedDisk> disk_ = std::make_shared<SimulatedDisk>();
    std::unique_ptr<Reactor> reactor_ = make_simulated_reactor(disk_);
};

TEST_F(SimulatedDiskTest, UnsyncedBytesAreLost) {
    disk_->write_text("d/file", "old");
    const int file = open("d/file", OpenMode::update);
    EXPECT_FALSE(write(file, "new and longer"));
    EXPECT_EQ(disk_->read_text("d/file"), "new and longer");
    EXPECT_EQ(disk_->crash()->read_text("d/file"), "old");
    EXPECT_EQ(disk_->crash({.kind = Kind::keep_all})->read_text("d/file"), "new and longer");
    EXPECT_FALSE(on_file(Opcode::fsync, file));
    EXPECT_EQ(disk_->crash()->read_text("d/file"), "new and longer");
    EXPECT_FALSE(write(file, "NEW"));
    EXPECT_EQ(disk_->crash()->read_text("d/file"), "new and longer");
}

TEST_F(SimulatedDiskTest, AFileNeedsItsDirectorySynced) {
    const int file = open("file", OpenMode::create);
    EXPECT_FALSE(write(file, "bytes"));
    EXPECT_FALSE(on_file(Opcode::fsync, file));
    EXPECT_FALSE(disk_->crash()->exists("file"));
    EXPECT_FALSE(on_path(Opcode::sync_directory, "/"));
    EXPECT_EQ(disk_->crash()->read_text("file"), "bytes");
}

TEST_F(SimulatedDiskTest, ANameWithoutAnFsyncIsAnEmptyFile) {
    const int file = open("file", OpenMode::create);
    EXPECT_FALSE(write(file, "bytes"));
    EXPECT_FALSE(on_path(Opcode::sync_directory, "/"));
    EXPECT_EQ(disk_->crash()->read_text("file"), "");
}

TEST_F(SimulatedDiskTest, RenameIsLostUntilItsDirectoriesAreSynced) {
    disk_->write_text("a/file", "old");
    disk_->write_text("b/file", "new");
    EXPECT_FALSE(rename("b/file", "a/file"));
    EXPECT_EQ(disk_->read_text("a/file"), "new");
    EXPECT_EQ(disk_->crash()->read_text("a/file"), "old");
    EXPECT_EQ(disk_->crash()->read_text("b/file"), "new");
    EXPECT_FALSE(on_path(Opcode::sync_directory, "a"));
    EXPECT_EQ(disk_->crash()->read_text("a/file"), "old") << "b is not synced";
    EXPECT_FALSE(on_path(Opcode::sync_directory, "b"));
    EXPECT_EQ(disk_->crash()->read_text("a/file"), "new");
    EXPECT_FALSE(disk_->crash()->exists("b/file"));
}

TEST_F(SimulatedDiskTest, DirectoriesAndUnlinksAreNamesToo) {
    disk_->write_text("file", "x");
    EXPECT_FALSE(on_path(Opcode::make_directory, "d"));
    EXPECT_FALSE(on_path(Opcode::unlink, "file"));
    const int inner = open("d/inner", OpenMode::create);
    EXPECT_FALSE(write(inner, "y"));
    EXPECT_FALSE(on_file(Opcode::fsync, inner));
    EXPECT_FALSE(on_path(Opcode::sync_directory, "d"));
    EXPECT_EQ(disk_->crash()->list("/", true), (std::vector<std::string>{"file"}));
    EXPECT_FALSE(on_path(Opcode::sync_directory, "/"));
    EXPECT_EQ(disk_->crash()->list("/", true), (std::vector<std::string>{"d/inner"}));
    EXPECT_EQ(disk_->crash()->read_text("d/inner"), "y");
}

TEST_F(SimulatedDiskTest, RandomCrashesLeaveOldOrNewBlocks) {
    const std::string old_text(8 * 4096, 'o'), new_text(8 * 4096, 'n');
    disk_->write_text("file", old_text);
    const int file = open("file", OpenMode::update);
    EXPECT_FALSE(write(file, new_text));
    bool mixed = false, torn = false;
    for (std::uint64_t seed = 0; seed < 50; ++seed) {
        for (const Kind kind : {Kind::random_subset, Kind::random_torn}) {
            const std::uint64_t unit = kind == Kind::random_torn ? 512 : 4096;
            const std::string left = disk_->crash({kind, seed})->read_text("file");
            ASSERT_EQ(left.size(), old_text.size());
            for (std::size_t at = 0; at < left.size(); at += unit) {
                const std::string piece = left.substr(at, unit);
                ASSERT_TRUE(piece == std::string(unit, 'o') || piece == std::string(unit, 'n'))
                    << "seed " << seed;
                torn = torn || (at % 4096 != 0 && left[at] != left[at - 1]);
            }
            mixed = mixed || (left.contains('o') && left.contains('n'));
        }
        EXPECT_EQ(disk_->crash({Kind::random_torn, seed})->read_text("file"),
                  disk_->crash({Kind::random_torn, seed})->read_text("file"));
    }
    EXPECT_TRUE(mixed);
    EXPECT_TRUE(torn);
}

TEST_F(SimulatedDiskTest, TheLogReplaysEveryPrefix) {
    const int file = open("file", OpenMode::create);
    for (const char* letter : {"a", "b", "c"}) {
        EXPECT_FALSE(write(file, letter));
        EXPECT_FALSE(on_file(Opcode::fsync, file));
    }
    const auto log = disk_->log();
    ASSERT_EQ(log.size(), 7u);
    EXPECT_EQ(log[0].op, Opcode::open);
    EXPECT_FALSE(disk_->crash_after(0, {Kind::keep_all})->exists("file"));
    EXPECT_EQ(disk_->crash_after(1, {Kind::keep_all})->read_text("file"), "");
    EXPECT_EQ(disk_->crash_after(2, {Kind::keep_all})->read_text("file"), "a");
    EXPECT_EQ(disk_->crash_after(4, {Kind::keep_all})->read_text("file"), "b");
    EXPECT_EQ(disk_->crash_after(7, {Kind::keep_all})->read_text("file"), "c");
}

TEST_F(SimulatedDiskTest, ADiskLivesOnAfterACrash) {
    disk_->write_text("file", "durable");
    const auto left = disk_->crash();
    const auto reactor = make_simulated_reactor(left);
    EXPECT_EQ(reactor->wait({.op = Opcode::open, .mode = OpenMode::create, .path = "next"}).error,
              std::error_code{});
    EXPECT_FALSE(disk_->exists("next"));
    EXPECT_EQ(left->crash()->list("/"), (std::vector<std::string>{"file"}));
}

TEST_F(SimulatedDiskTest, AFailedFsyncPoisonsTheFile) {
    disk_->write_text("file", "old");
    const int file = open("file", OpenMode::update);
    EXPECT_FALSE(write(file, "new"));
    disk_->inject({.op = Opcode::fsync});
    EXPECT_EQ(on_file(Opcode::fsync, file), errno_code(EIO));
    EXPECT_FALSE(on_file(Opcode::fsync, file)) << "reports success, as Linux does";
    EXPECT_EQ(disk_->crash()->read_text("file"), "old");
}

TEST_F(SimulatedDiskTest, FaultsHitWhatTheyName) {
    disk_->inject({.op = Opcode::open, .path_contains = "victim", .after = 1, .error = ENOSPC});
    open("victim.0", OpenMode::create);
    open("bystander", OpenMode::create);
    EXPECT_EQ(
        reactor_->wait({.op = Opcode::open, .mode = OpenMode::create, .path = "victim.1"}).error,
        errno_code(ENOSPC));
    open("victim.2", OpenMode::create);
    disk_->inject({.times = Fault::for_ever});
    for (int i = 0; i < 3; ++i)
        EXPECT_EQ(on_path(Opcode::stat, "/"), errno_code(EIO));
    disk_->clear_faults();
    EXPECT_FALSE(on_path(Opcode::stat, "/"));
}

TEST_F(SimulatedDiskTest, ShortTransfersAreResumed) {
    for (const std::uint64_t seed : {1, 2, 3}) {
        disk_->shorten_transfers(seed);
        for (const Caching caching : {Caching::buffered, Caching::direct}) {
            const std::string path =
                std::string(caching == Caching::direct ? "d" : "b") + std::to_string(seed);
            const int file = open(path, OpenMode::create, caching);
            Block out(1 << 18), in(1 << 18);
            out.fill(static_cast<unsigned>(seed));
            Request request{
                .op = Opcode::write, .file = file, .data = out.data(), .length = out.size()};
            EXPECT_EQ(reactor_->wait(request).result, out.size()) << "seed " << seed;
            request.op = Opcode::read;
            request.data = in.data();
            EXPECT_EQ(reactor_->wait(request).result, in.size()) << "seed " << seed;
            EXPECT_TRUE(in.equals(out, out.size())) << "seed " << seed;
        }
    }
    EXPECT_GT(disk_->operations(), 18u) << "nothing was short";
}

TEST_F(SimulatedDiskTest, InterruptionsAreRepeatedAndEndlessOnesReported) {
    const int file = open("file", OpenMode::create);
    disk_->inject({.op = Opcode::write, .times = 3, .error = EINTR});
    disk_->inject({.op = Opcode::write, .after = 3, .times = 2, .error = EAGAIN});
    EXPECT_FALSE(write(file, "text"));
    EXPECT_EQ(disk_->read_text("file"), "text");
    disk_->clear_faults();
    disk_->inject({.op = Opcode::write, .times = Fault::for_ever, .error = 0});
    EXPECT_EQ(write(file, "text"), make_error_code(Errc::io_no_progress));
    disk_->clear_faults();
    disk_->inject({.op = Opcode::fsync, .error = EINTR});
    EXPECT_EQ(on_file(Opcode::fsync, file), errno_code(EINTR)) << "fsync is never repeated";
}

TEST_F(SimulatedDiskTest, CompletionsCanComeInAnyOrder) {
    const auto run = [](std::uint64_t seed) {
        const auto disk = std::make_shared<SimulatedDisk>();
        disk->shuffle_completions(seed);
        disk->hold();
        const auto reactor = make_simulated_reactor(disk);
        std::vector<int> order;
        std::promise<void> all;
        std::vector<Reactor::Submission> batch(20);
        for (int i = 0; i < 20; ++i)
            batch[static_cast<std::size_t>(i)] = {{.op = Opcode::stat, .path = "/"},
                                                  [&, i](Completion) {
                                                      order.push_back(i);
                                                      if (order.size() == 20)
                                                          all.set_value();
                                                  }};
        reactor->submit(batch);
        disk->release();
        all.get_future().wait();
        return order;
    };
    EXPECT_EQ(run(7), run(7));
    EXPECT_NE(run(7), run(8));
}

TEST_F(SimulatedDiskTest, HeldOperationsEndWhenReleased) {
    disk_->hold();
    auto held = reactor_->async_perform({.op = Opcode::stat, .path = "/"});
    auto behind = reactor_->async_perform({.op = Opcode::stat, .path = "/"});
    EXPECT_EQ(held.wait_for(std::chrono::seconds(0)), std::future_status::timeout);
    std::thread releaser([&] { disk_->release(); });
    reactor_.reset();
    releaser.join();
    EXPECT_EQ(held.get().status.kind, FileKind::directory);
    behind.get();
}

TEST_F(SimulatedDiskTest, RanksShareOneDisk) {
    const auto other = make_simulated_reactor(disk_);
    const int file = open("file", OpenMode::create);
    EXPECT_FALSE(write(file, "text"));
    EXPECT_EQ(other->wait({.op = Opcode::stat, .path = "file"}).status.size, 4u);
    EXPECT_EQ(disk_->open_files(), 1u);
    EXPECT_FALSE(other->wait({.op = Opcode::close, .file = file}).error);
    EXPECT_EQ(disk_->open_files(), 0u);
}

TEST_F(SimulatedDiskTest, RefusingDirectIsSaid) {
    disk_->refuse_direct();
    EXPECT_FALSE(reactor_
                     ->wait({.op = Opcode::open,
                             .mode = OpenMode::create,
                             .caching = Caching::direct,
                             .path = "file"})
                     .direct);
    EXPECT_FALSE(reactor_->file_system("/")->direct);
}

} // namespace

} // namespace safering::test
