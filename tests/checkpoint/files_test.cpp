// Files of any content: what is written is what is read, and a failure at any operation leaves the older file.
#include <algorithm>

#include <safering/byte_range.hpp>

#include "../io/backends.hpp"
#include "checkpoint/file_reader.hpp"
#include "checkpoint/file_writer.hpp"
#include "io/simulated_disk.hpp"

namespace safering::test {

namespace {

using checkpoint::FileReader;
using checkpoint::FileWriter;

std::vector<std::byte> random_bytes(std::size_t count, unsigned seed) {
    std::mt19937_64 random(seed);
    std::vector<std::byte> bytes(count);
    for (std::byte& byte : bytes)
        byte = static_cast<std::byte>(random());
    return bytes;
}

Result<void> write_all(std::shared_ptr<Reactor> reactor, const std::string& path,
                       std::span<const std::byte> bytes, std::uint64_t expected = 0,
                       std::size_t piece = 7777) {
    auto writer = FileWriter::create(std::move(reactor), path, expected);
    if (!writer)
        return std::unexpected(writer.error());
    for (std::size_t at = 0; at < bytes.size(); at += piece)
        if (auto written = (*writer)->write(bytes.subspan(at, std::min(piece, bytes.size() - at)));
            !written)
            return written;
    EXPECT_EQ((*writer)->size(), bytes.size());
    auto committed = (*writer)->commit();
    if (!committed)
        return std::unexpected(committed.error());
    EXPECT_EQ(*committed, std::vector<std::string>{});
    return {};
}

// Whole, in memory that begins `shift` bytes after a block's.
std::vector<std::byte> read_all(std::shared_ptr<Reactor> reactor, const std::string& path,
                                std::size_t shift = 0) {
    const auto reader = value_or_throw(FileReader::open(std::move(reactor), path));
    const Block memory(round_up(reader->size() + shift + 1, 4096));
    const auto into = memory.span().subspan(shift);
    const std::size_t count = value_or_throw(reader->read(into, 0));
    return {into.begin(), into.begin() + static_cast<std::ptrdiff_t>(count)};
}

class FilesTest : public testing::TestWithParam<BackendKind> {
  protected:
    void SetUp() override {
        disk->make_directory(directory.path());
        // Small buffers, so that a few hundred kilobytes are many of them.
        ReactorOptions options{.buffer_bytes = 64 << 10, .buffer_count = 3};
        if (GetParam() == BackendKind::simulated) {
            reactor = make_simulated_reactor(disk, options);
            return;
        }
        options.backend =
            GetParam() == BackendKind::io_uring ? BackendChoice::io_uring : BackendChoice::threads;
        reactor = value_or_throw(Reactor::create(options));
    }

    TemporaryDirectory directory;
    std::shared_ptr<SimulatedDisk> disk = std::make_shared<SimulatedDisk>();
    std::shared_ptr<Reactor> reactor;
};

INSTANTIATE_TEST_SUITE_P(Backends, FilesTest,
                         testing::Values(BackendKind::io_uring, BackendKind::threads,
                                         BackendKind::simulated),
                         [](const auto& tested) { return std::string(name(tested.param)); });

TEST_P(FilesTest, WhatIsWrittenIsRead) {
    const std::string path = directory / "file";
    unsigned seed = 1;
    for (const std::size_t size :
         {0u, 1u, 4095u, 4096u, 65536u, 65537u, 262144u, 1500000u, 3000001u})
        for (const std::uint64_t expected :
             {std::uint64_t{0}, std::uint64_t{size}, std::uint64_t{1000}, std::uint64_t{2000000}}) {
            const auto bytes = random_bytes(size, seed++);
            const auto written = write_all(reactor, path, bytes, expected);
            ASSERT_TRUE(written) << written.error().message();
            // Straight into the destination, and through buffers.
            EXPECT_EQ(read_all(reactor, path), bytes) << size;
            EXPECT_EQ(read_all(reactor, path, 33), bytes) << size;
        }
}

TEST_P(FilesTest, PiecesAreReadFromAnywhere) {
    const auto bytes = random_bytes(2'500'003, 7);
    const std::string path = directory / "file";
    ASSERT_TRUE(write_all(reactor, path, bytes, 0, 100'000));
    const auto reader = value_or_throw(FileReader::open(reactor, path));
    EXPECT_EQ(reader->size(), bytes.size());
    std::mt19937_64 random(8);
    for (int i = 0; i < 200; ++i) {
        const std::uint64_t offset = random() % (bytes.size() + 10);
        std::vector<std::byte> out(random() % (i % 4 == 0 ? 2'000'000 : 30'000));
        const std::size_t there =
            offset < bytes.size() ? std::min(out.size(), bytes.size() - offset) : 0;
        ASSERT_EQ(value_or_throw(reader->read(out, offset)), there);
        ASSERT_TRUE(std::equal(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(there),
                               bytes.begin() + static_cast<std::ptrdiff_t>(
                                                   std::min<std::uint64_t>(offset, bytes.size()))))
            << offset << ' ' << out.size();
    }
}

TEST_P(FilesTest, UntilTheCommitTheOlderFileStays) {
    const auto older = random_bytes(100'000, 1), newer = random_bytes(300'000, 2);
    const std::string path = directory / "file";
    ASSERT_TRUE(write_all(reactor, path, older));
    const auto names = [&] {
        auto listed = reactor->wait({.op = Opcode::list, .path = directory.path()});
        return listed.entries.size();
    };
    {
        const auto abandoned = value_or_throw(FileWriter::create(reactor, path));
        ASSERT_TRUE(abandoned->write(newer));
        EXPECT_EQ(read_all(reactor, path), older);
        EXPECT_EQ(names(), 2);
    }
    EXPECT_EQ(names(), 1);
    {
        const auto writer = value_or_throw(FileWriter::create(reactor, path));
        ASSERT_TRUE(writer->write(newer));
        ASSERT_TRUE(writer->abandon());
    }
    EXPECT_EQ(read_all(reactor, path), older);
    EXPECT_EQ(names(), 1);
    const auto reading = value_or_throw(FileReader::open(reactor, path));
    ASSERT_TRUE(write_all(reactor, path, newer));
    EXPECT_EQ(read_all(reactor, path), newer);
    std::vector<std::byte> out(older.size());
    EXPECT_EQ(value_or_throw(reading->read(out, 0)),
              older.size()); // it reads on what it has opened
    EXPECT_EQ(out, older);
}

TEST_P(FilesTest, ADirectoryIsNoFile) {
    EXPECT_EQ(FileWriter::create(reactor, directory.path()).error().code,
              std::errc::is_a_directory);
    EXPECT_EQ(FileReader::open(reactor, directory.path()).error().code, std::errc::is_a_directory);
    EXPECT_EQ(FileReader::open(reactor, directory / "none").error().code,
              std::errc::no_such_file_or_directory);
    EXPECT_EQ(FileWriter::create(reactor, directory / "none/file").error().code,
              std::errc::no_such_file_or_directory);
}

TEST_P(FilesTest, WhatKilledWritersLeftGoesWithTheNextFile) {
    const std::string path = directory / "file";
    const auto make = [&](const std::string& name) {
        const Completion made =
            reactor->wait({.op = Opcode::open, .mode = OpenMode::create, .path = directory / name});
        ASSERT_FALSE(made.error);
        reactor->wait({.op = Opcode::close, .file = static_cast<int>(made.result)});
    };
    make(".file." + std::string(32, '0') + ".part");
    make(".file." + std::string(32, 'f') + ".part"); // made later than ours
    make(".files." + std::string(32, '0') + ".part");
    make(".file." + std::string(31, '0') + "x.part");
    ASSERT_TRUE(write_all(reactor, path, random_bytes(10, 1)));
    std::vector<std::string> names;
    for (const auto& entry : reactor->wait({.op = Opcode::list, .path = directory.path()}).entries)
        names.push_back(entry.name);
    std::ranges::sort(names);
    EXPECT_EQ(names,
              (std::vector<std::string>{".file." + std::string(31, '0') + "x.part",
                                        ".file." + std::string(32, 'f') + ".part",
                                        ".files." + std::string(32, '0') + ".part", "file"}));
}

TEST_P(FilesTest, ALinkIsReplacedAndNotWhatItMeans) {
    if (GetParam() == BackendKind::simulated)
        disk->make_symlink(directory / "link", directory / "other");
    else
        std::filesystem::create_symlink(directory / "other", directory / "link");
    ASSERT_TRUE(write_all(reactor, directory / "link", random_bytes(10, 1)));
    EXPECT_EQ(read_all(reactor, directory / "link").size(), 10);
    EXPECT_TRUE(FileReader::open(reactor, directory / "other").error().code);
}

// On the simulated disk, where everything can fail.
class FilesOnDisk : public testing::Test {
  protected:
    FilesOnDisk() {
        disk->make_directory("/d");
        reactor = make_simulated_reactor(disk, {.buffer_bytes = 16 << 10, .buffer_count = 3});
    }
    std::shared_ptr<SimulatedDisk> disk = std::make_shared<SimulatedDisk>();
    std::shared_ptr<Reactor> reactor;
    const std::vector<std::byte> older = random_bytes(50'000, 1);
    const std::vector<std::byte> newer = random_bytes(200'001, 2);
};

// As ext4 does on a full disk: what there was is the file's, up to there, and the call has failed.
TEST_F(FilesOnDisk, AnAllocationThatFailedHalfWayLeavesNoTail) {
    const std::vector<std::byte> whole = random_bytes(196'608, 3); // whole blocks, whole buffers
    for (const std::uint64_t expected : {std::uint64_t{0}, std::uint64_t{whole.size()}}) {
        bool failed = false;
        disk->intercept_end([&](Operation& operation) {
            if (operation.request.op == Opcode::allocate && !std::exchange(failed, true))
                operation.completion.error = errno_code(28); // ENOSPC
        });
        const auto written = write_all(reactor, "/d/file", whole, expected);
        EXPECT_TRUE(failed);
        EXPECT_EQ(written.has_value(), expected == 0);
        EXPECT_TRUE(!written || disk->read_file("/d/file") == whole);
    }
}

TEST_F(FilesOnDisk, AFailureOfAnyOperationIsToldAndHarmless) {
    std::size_t failures = 0;
    for (const Opcode op : {Opcode::open, Opcode::allocate, Opcode::write, Opcode::truncate,
                            Opcode::fsync, Opcode::rename, Opcode::sync_directory})
        for (std::uint64_t after = 0;; ++after) {
            disk->clear_faults();
            ASSERT_TRUE(write_all(reactor, "/d/file", older));
            disk->inject({.op = op, .after = after, .times = 1, .error = 28}); // ENOSPC
            const auto written = write_all(reactor, "/d/file", newer, after % 2 == 0 ? 0 : 200'001);
            if (disk->hits().empty()) {
                EXPECT_TRUE(written);
                EXPECT_NE(after, 0) << name(op); // every kind occurs
                break;
            }
            ++failures;
            disk->clear_faults();
            EXPECT_EQ(disk->list("/d"), std::vector<std::string>{"file"});
            // Growth that does not fit is tried again at its least.
            if (written) {
                EXPECT_EQ(op, Opcode::allocate);
                EXPECT_EQ(disk->read_file("/d/file"), newer);
            } else {
                EXPECT_EQ(written.error().code, errno_code(28)) << written.error().message();
                EXPECT_TRUE(written.error().file.starts_with("/d")) << written.error().message();
                // A rename that is not known to be durable has still happened.
                EXPECT_TRUE(disk->read_file("/d/file") ==
                            (op == Opcode::sync_directory ? newer : older))
                    << name(op) << ' ' << after;
            }
            EXPECT_EQ(disk->open_files(), 0);
        }
    EXPECT_GT(failures, 15);
}

TEST_F(FilesOnDisk, ShortTransfersAndRefusedDirectIoAreFine) {
    for (const bool direct : {true, false}) {
        if (!direct)
            disk->refuse_direct();
        disk->shorten_transfers(3);
        disk->shuffle_completions(4);
        ASSERT_TRUE(write_all(reactor, "/d/file", newer));
        EXPECT_EQ(read_all(reactor, "/d/file"), newer);
        EXPECT_EQ(read_all(reactor, "/d/file", 5), newer);
    }
}

TEST_F(FilesOnDisk, APowerCutLeavesTheOldFileOrTheNewOne) {
    const auto before = random_bytes(20'000, 3), then = random_bytes(70'001, 4);
    ASSERT_TRUE(write_all(reactor, "/d/file", before));
    const std::size_t first = disk->log_size();
    ASSERT_TRUE(write_all(reactor, "/d/file", then, 0, 50'000));
    const std::size_t last = disk->log_size();
    std::size_t seen = 0;
    for (std::size_t records = first; records <= last; ++records)
        for (const auto kind : {CrashPolicy::Kind::drop_unsynced, CrashPolicy::Kind::keep_all,
                                CrashPolicy::Kind::random_torn, CrashPolicy::Kind::random_prefix}) {
            const auto after = disk->crash_after(records, {.kind = kind, .seed = records});
            const auto found = after->read_file("/d/file");
            ASSERT_TRUE(found == before || found == then) << records << " of " << last;
            seen += found == before;
            if (records == last) {
                EXPECT_EQ(found, then); // durable when commit() has returned
            }
        }
    EXPECT_GT(seen, 0);
}

TEST_F(FilesOnDisk, AFileThatShrinksIsAnError) {
    ASSERT_TRUE(write_all(reactor, "/d/file", newer));
    for (const std::size_t length : {std::size_t{100}, newer.size()}) {
        const auto reader = value_or_throw(FileReader::open(reactor, "/d/file"));
        const Completion opened =
            reactor->wait({.op = Opcode::open, .mode = OpenMode::update, .path = "/d/file"});
        const int file = static_cast<int>(opened.result);
        ASSERT_FALSE(reactor->wait({.op = Opcode::truncate, .file = file, .length = 50}).error);
        reactor->wait({.op = Opcode::close, .file = file});
        std::vector<std::byte> out(length);
        const auto read = reader->read(out, newer.size() - length);
        ASSERT_FALSE(read);
        EXPECT_EQ(read.error().code, make_error_code(Errc::io_unexpected_end));
        EXPECT_EQ(read.error().file, "/d/file");
        ASSERT_TRUE(write_all(reactor, "/d/file", newer));
    }
}

TEST_F(FilesOnDisk, AFailedReadIsToldWhateverElseIsInFlight) {
    const auto bytes = random_bytes(3'000'000, 5);
    ASSERT_TRUE(write_all(reactor, "/d/file", bytes));
    for (const std::size_t shift : {0, 1})
        for (std::uint64_t after = 0; after < 30; ++after) {
            disk->clear_faults();
            disk->inject({.op = Opcode::read, .after = after, .times = 1, .error = 5});
            const auto reader = value_or_throw(FileReader::open(reactor, "/d/file"));
            const Block memory(round_up(bytes.size() + shift, 4096));
            const auto read = reader->read(memory.span().subspan(shift), 0);
            ASSERT_FALSE(read);
            EXPECT_EQ(read.error().code, errno_code(5));
        }
}

} // namespace

} // namespace safering::test
