// One suite over every backend: each operation, its errors, and what the
// Reactor promises about them.
#include <atomic>
#include <future>
#include <latch>
#include <thread>

#include <boost/asio/bind_executor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <fcntl.h>
#include <sys/stat.h>

#include "backends.hpp"
#include "io/buffer_pool.hpp"

#include "io/simulated_disk.hpp"

namespace safering::test {

namespace {

class BackendTest : public testing::TestWithParam<BackendKind> {
  protected:
    std::unique_ptr<Reactor> make(ReactorOptions options = {}) {
        if (GetParam() == BackendKind::simulated)
            return make_simulated_reactor(disk_, options);
        options.backend =
            GetParam() == BackendKind::io_uring ? BackendChoice::io_uring : BackendChoice::threads;
        return value_or_throw(Reactor::create(options));
    }
    std::unique_ptr<Reactor> make_on(boost::asio::io_context& context,
                                     ReactorOptions options = {}) {
        if (GetParam() == BackendKind::simulated)
            return make_simulated_reactor(disk_, context, options);
        options.backend =
            GetParam() == BackendKind::io_uring ? BackendChoice::io_uring : BackendChoice::threads;
        return value_or_throw(Reactor::create(context, options));
    }
    void SetUp() override {
        disk_->make_directory(directory_.path());
        reactor_ = make();
        ASSERT_EQ(reactor_->info().backend, GetParam());
    }

    Completion open(const std::string& name, OpenMode mode, Caching caching = Caching::buffered) {
        return reactor_->wait(
            {.op = Opcode::open, .mode = mode, .caching = caching, .path = directory_ / name});
    }
    int create(const std::string& name, Caching caching = Caching::buffered) {
        Completion completion = open(name, OpenMode::create, caching);
        EXPECT_FALSE(completion.error) << completion.error.message();
        return static_cast<int>(completion.result);
    }
    // What is created or updated is open for writing only.
    int open_to_read(const std::string& name, Caching caching = Caching::buffered) {
        const Completion completion = open(name, OpenMode::read, caching);
        EXPECT_FALSE(completion.error) << completion.error.message();
        return static_cast<int>(completion.result);
    }
    void close(int file) {
        EXPECT_FALSE(reactor_->wait({.op = Opcode::close, .file = file}).error);
    }
    std::error_code run(Opcode op, const std::string& name) {
        return reactor_->wait({.op = op, .path = directory_ / name}).error;
    }
    std::error_code rename(const std::string& from, const std::string& to, bool replace) {
        return reactor_
            ->wait({.op = Opcode::rename,
                    .replace = replace,
                    .path = directory_ / from,
                    .new_path = directory_ / to})
            .error;
    }
    Completion write(int file, const Block& block, std::uint64_t length, std::uint64_t offset) {
        return reactor_->wait({.op = Opcode::write,
                               .file = file,
                               .data = block.data(),
                               .length = length,
                               .offset = offset});
    }
    Completion read(int file, const Block& block, std::uint64_t length, std::uint64_t offset,
                    std::uint64_t minimum = 0) {
        return reactor_->wait({.op = Opcode::read,
                               .file = file,
                               .data = block.data(),
                               .length = length,
                               .offset = offset,
                               .minimum = minimum});
    }
    FileStatus status(const std::string& name) {
        return reactor_->wait({.op = Opcode::stat, .path = directory_ / name}).status;
    }

    TemporaryDirectory directory_;
    std::shared_ptr<SimulatedDisk> disk_ = std::make_shared<SimulatedDisk>();
    std::unique_ptr<Reactor> reactor_;
};

INSTANTIATE_TEST_SUITE_P(Backends, BackendTest,
                         testing::Values(BackendKind::io_uring, BackendKind::threads,
                                         BackendKind::simulated),
                         [](const auto& tested) { return std::string(name(tested.param)); });

TEST_P(BackendTest, WritesAndReadsBack) {
    for (const Caching caching : {Caching::buffered, Caching::direct}) {
        const std::string name = caching == Caching::direct ? "direct" : "buffered";
        const int file = create(name, caching);
        Block out(1 << 20), in(1 << 20);
        out.fill(1);
        EXPECT_FALSE(
            reactor_->wait({.op = Opcode::allocate, .file = file, .length = 1 << 20}).error);
        const Completion written = write(file, out, out.size(), 0);
        EXPECT_FALSE(written.error) << written.error.message();
        EXPECT_EQ(written.result, out.size());
        EXPECT_FALSE(reactor_->wait({.op = Opcode::fsync, .file = file}).error);
        const int reader = open_to_read(name, caching);
        EXPECT_EQ(read(reader, in, in.size(), 0).result, in.size());
        close(reader);
        EXPECT_TRUE(in.equals(out, out.size()));
        close(file);
    }
}

TEST_P(BackendTest, OpenReportsStatusAndCaching) {
    const int file = create("file", Caching::direct);
    const Block block(4096);
    EXPECT_FALSE(write(file, block, 4096, 0).error);
    close(file);
    const Completion direct = open("file", OpenMode::read, Caching::direct);
    EXPECT_TRUE(direct.direct);
    EXPECT_EQ(direct.status.kind, FileKind::regular);
    EXPECT_EQ(direct.status.size, 4096u);
    EXPECT_NE(direct.status.inode, 0u);
    close(static_cast<int>(direct.result));
    const Completion buffered = open("file", OpenMode::update);
    EXPECT_FALSE(buffered.direct);
    EXPECT_EQ(buffered.status.inode, direct.status.inode);
    close(static_cast<int>(buffered.result));
}

TEST_P(BackendTest, OpenModesKeepTheirPromises) {
    EXPECT_EQ(open("none", OpenMode::read).error, errno_code(ENOENT));
    EXPECT_EQ(open("none", OpenMode::update).error, errno_code(ENOENT));
    close(create("file"));
    EXPECT_EQ(open("file", OpenMode::create).error, errno_code(EEXIST));
    EXPECT_EQ(run(Opcode::make_directory, "directory"), std::error_code{});
    EXPECT_EQ(open("directory", OpenMode::update).error, errno_code(EISDIR));
    EXPECT_EQ(open("file/below", OpenMode::read).error, errno_code(ENOTDIR));

    std::filesystem::create_symlink("file", directory_ / "link");
    disk_->make_symlink(directory_ / "link", "file");
    const Completion followed = open("link", OpenMode::read);
    EXPECT_FALSE(followed.error);
    close(static_cast<int>(followed.result));
    EXPECT_EQ(open("link", OpenMode::read_strict).error, errno_code(ELOOP));
    EXPECT_EQ(open("link", OpenMode::update).error, errno_code(ELOOP));
    EXPECT_EQ(open("link", OpenMode::create).error, errno_code(EEXIST));
}

TEST_P(BackendTest, AllocateSetsTheSizeAndTruncateChangesIt) {
    const int file = create("file");
    EXPECT_FALSE(reactor_->wait({.op = Opcode::allocate, .file = file, .length = 10000}).error);
    EXPECT_EQ(status("file").size, 10000u);
    EXPECT_FALSE(reactor_->wait({.op = Opcode::truncate, .file = file, .length = 5000}).error);
    EXPECT_EQ(status("file").size, 5000u);
    close(file);
}

TEST_P(BackendTest, RenameReplacesOnlyWhenAsked) {
    close(create("a"));
    close(create("b"));
    EXPECT_EQ(rename("a", "b", false), errno_code(EEXIST));
    EXPECT_EQ(rename("a", "c", false), std::error_code{});
    EXPECT_EQ(rename("c", "b", true), std::error_code{});
    EXPECT_EQ(rename("none", "x", true), errno_code(ENOENT));
    const Completion listed = reactor_->wait({.op = Opcode::list, .path = directory_.path()});
    ASSERT_EQ(listed.entries.size(), 1u);
    EXPECT_EQ(listed.entries[0].name, "b");
    EXPECT_EQ(listed.entries[0].kind, FileKind::regular);

    EXPECT_EQ(run(Opcode::make_directory, "d"), std::error_code{});
    EXPECT_EQ(run(Opcode::make_directory, "e"), std::error_code{});
    EXPECT_EQ(rename("d", "e", false), errno_code(EEXIST));
    close(create("e/file"));
    EXPECT_EQ(rename("d", "e", true), errno_code(ENOTEMPTY));
    EXPECT_EQ(rename("e", "f", false), std::error_code{});
    // A slash at the end: a directory and nothing else.
    EXPECT_EQ(rename("f/", "g", false), std::error_code{});
    EXPECT_EQ(rename("b/", "h", false), errno_code(ENOTDIR));
    EXPECT_EQ(rename("none/", "h", false), errno_code(ENOENT));
    EXPECT_EQ(status("g/file").kind, FileKind::regular);
}

TEST_P(BackendTest, DirectoriesComeAndGo) {
    EXPECT_EQ(run(Opcode::make_directory, "d"), std::error_code{});
    EXPECT_EQ(run(Opcode::make_directory, "d"), errno_code(EEXIST));
    EXPECT_EQ(run(Opcode::make_directory, "x/y"), errno_code(ENOENT));
    close(create("d/file"));
    EXPECT_EQ(run(Opcode::sync_directory, "d"), std::error_code{});
    EXPECT_EQ(run(Opcode::sync_directory, "none"), errno_code(ENOENT));
    EXPECT_EQ(run(Opcode::remove_directory, "d"), errno_code(ENOTEMPTY));
    EXPECT_EQ(run(Opcode::unlink, "d"), errno_code(EISDIR));
    EXPECT_EQ(run(Opcode::unlink, "d/file"), std::error_code{});
    EXPECT_EQ(run(Opcode::unlink, "d/file"), errno_code(ENOENT));
    EXPECT_EQ(run(Opcode::remove_directory, "d"), std::error_code{});
    EXPECT_EQ(run(Opcode::stat, "d"), errno_code(ENOENT));
    EXPECT_EQ(run(Opcode::list, "d"), errno_code(ENOENT));
}

TEST_P(BackendTest, ReadsStopAtTheEndOfTheFile) {
    for (const Caching caching : {Caching::buffered, Caching::direct}) {
        const std::string file_name = caching == Caching::direct ? "direct" : "buffered";
        int file = create(file_name);
        Block block(8192), in(8192);
        block.fill(2);
        EXPECT_EQ(write(file, block, 5000, 0).result, 5000u);
        close(file);
        file = static_cast<int>(open(file_name, OpenMode::read, caching).result);
        const Completion enough = read(file, in, 8192, 0, 5000);
        EXPECT_FALSE(enough.error) << enough.error.message();
        EXPECT_EQ(enough.result, 5000u);
        EXPECT_TRUE(in.equals(block, 5000));
        const Completion missing = read(file, in, 8192, 0, 5001);
        EXPECT_EQ(missing.error, make_error_code(Errc::io_unexpected_end));
        EXPECT_EQ(missing.result, 5000u);
        EXPECT_EQ(read(file, in, 8192, 0).error, make_error_code(Errc::io_unexpected_end));
        EXPECT_EQ(read(file, in, 4096, 8192).error, make_error_code(Errc::io_unexpected_end));
        close(file);
    }
}

TEST_P(BackendTest, MisalignedDirectTransfersAreRefused) {
    const int file = create("file", Caching::direct);
    const Block block(8192);
    EXPECT_EQ(write(file, block, 4000, 0).error, errno_code(EINVAL));
    EXPECT_EQ(write(file, block, 4096, 100).error, errno_code(EINVAL));
    EXPECT_EQ(
        reactor_
            ->wait({.op = Opcode::write, .file = file, .data = block.data() + 1, .length = 4096})
            .error,
        errno_code(EINVAL));
    EXPECT_FALSE(write(file, block, 4096, 4096).error);
    close(file);
}

TEST_P(BackendTest, BadDescriptorsAreErrors) {
    const Block block(4096);
    EXPECT_EQ(write(999'999, block, 4096, 0).error, errno_code(EBADF));
    EXPECT_EQ(reactor_->wait({.op = Opcode::fsync, .file = 999'999}).error, errno_code(EBADF));
    EXPECT_EQ(reactor_->wait({.op = Opcode::close, .file = 999'999}).error, errno_code(EBADF));
    const int file = create("file");
    close(file);
    const int reader = static_cast<int>(open("file", OpenMode::read).result);
    EXPECT_EQ(write(reader, block, 4096, 0).error, errno_code(EBADF));
    close(reader);
}

TEST_P(BackendTest, EmptyTransfersSucceed) {
    const int file = create("file");
    EXPECT_FALSE(reactor_->wait({.op = Opcode::write, .file = file}).error);
    close(file);
    const int reader = open_to_read("file");
    EXPECT_FALSE(reactor_->wait({.op = Opcode::read, .file = reader}).error);
    close(reader);
}

TEST_P(BackendTest, BatchesLargerThanTheQueueComplete) {
    reactor_ = make({.queue_depth = 4, .threads = 2});
    for (const Caching caching : {Caching::buffered, Caching::direct}) {
        const std::string name = caching == Caching::direct ? "direct" : "buffered";
        const int file = create(name, caching), reader = open_to_read(name, caching);
        constexpr std::size_t count = 1000, size = 4096;
        Block out(count * size), in(count * size);
        out.fill(3);
        std::vector<Request> writes, reads;
        for (std::size_t i = 0; i < count; ++i) {
            Request request{.op = Opcode::write,
                            .file = file,
                            .data = out.data() + i * size,
                            .length = size,
                            .offset = i * size};
            writes.push_back(request);
            request.op = Opcode::read;
            request.file = reader;
            request.data = in.data() + i * size;
            reads.push_back(request);
        }
        for (const auto& batch : {writes, reads})
            for (const Completion& completion : reactor_->wait_all(batch)) {
                EXPECT_FALSE(completion.error) << completion.error.message();
                EXPECT_EQ(completion.result, size);
            }
        EXPECT_TRUE(in.equals(out, out.size()));
        close(file);
        close(reader);
    }
}

// A client of NFS would read what is around a partial write, and write it back over what other hosts have written.
TEST_P(BackendTest, WhatIsWrittenIsNotOpenForReading) {
    const int file = create("file");
    const int other = static_cast<int>(open("file", OpenMode::update).result);
    const Block block(4096);
    EXPECT_FALSE(write(file, block, 4096, 0).error);
    for (const int each : {file, other}) {
        if (GetParam() == BackendKind::simulated)
            continue;
        EXPECT_EQ(::fcntl(each, F_GETFL) & O_ACCMODE, O_WRONLY);
    }
    close(file);
    close(other);
}

TEST_P(BackendTest, HandlersRunOnTheReactorAndNeverInsideSubmit) {
    std::promise<bool> on_reactor;
    std::atomic<bool> inside_submit = false, seen_inside = false;
    boost::asio::post(reactor_->executor(), [&] {
        inside_submit = true;
        reactor_->submit({.op = Opcode::stat, .path = directory_.path()}, [&](Completion) {
            seen_inside = inside_submit.load();
            on_reactor.set_value(reactor_->running_in_this_thread());
        });
        inside_submit = false;
    });
    EXPECT_TRUE(on_reactor.get_future().get());
    EXPECT_FALSE(seen_inside);
    EXPECT_FALSE(reactor_->running_in_this_thread());
}

TEST_P(BackendTest, HandlersMaySubmit) {
    const int file = create("file", Caching::direct);
    const Block block(4096);
    std::promise<int> done;
    std::function<void(int)> next = [&](int left) {
        if (left == 0)
            return done.set_value(left);
        reactor_->submit({.op = Opcode::write, .file = file, .data = block.data(), .length = 4096},
                         [&, left](Completion completion) {
                             EXPECT_FALSE(completion.error);
                             next(left - 1);
                         });
    };
    next(50);
    EXPECT_EQ(done.get_future().get(), 0);
    close(file);
}

TEST_P(BackendTest, ThreadsMaySubmitAtOnce) {
    const int file = create("file", Caching::direct);
    const Block block(4096);
    constexpr int threads = 4, each = 200;
    std::latch left(threads * each);
    std::vector<std::thread> submitters;
    for (int t = 0; t < threads; ++t)
        submitters.emplace_back([&, t] {
            for (int i = 0; i < each; ++i)
                reactor_->submit({.op = Opcode::write,
                                  .file = file,
                                  .data = block.data(),
                                  .length = 4096,
                                  .offset = static_cast<std::uint64_t>(t * each + i) * 4096},
                                 [&](Completion completion) {
                                     EXPECT_FALSE(completion.error);
                                     left.count_down();
                                 });
        });
    for (std::thread& submitter : submitters)
        submitter.join();
    left.wait();
    EXPECT_EQ(status("file").size, std::uint64_t{threads} * each * 4096);
    close(file);
}

TEST_P(BackendTest, TokensDeliverFuturesAndCallbacks) {
    const int file = create("file"), reader = open_to_read("file");
    Block out(4096), in(4096);
    out.fill(4);
    EXPECT_EQ(reactor_->async_write(file, out.span(), 0).get(), 4096u);
    reactor_->async_fsync(file).get();
    std::promise<std::size_t> arrived;
    reactor_->async_read(
        reader, in.span(), 0,
        [&, once = std::make_unique<int>(0)](boost::system::error_code error, std::size_t bytes) {
            EXPECT_FALSE(error);
            EXPECT_TRUE(reactor_->running_in_this_thread());
            arrived.set_value(bytes);
        });
    EXPECT_EQ(arrived.get_future().get(), 4096u);
    EXPECT_TRUE(in.equals(out, 4096));
    close(file);
    close(reader);

    auto failing = reactor_->async_perform({.op = Opcode::unlink, .path = directory_ / "none"});
    try {
        failing.get();
        FAIL() << "an error must become an exception";
    } catch (const boost::system::system_error& error) {
        EXPECT_EQ(error.code().value(), ENOENT);
    }
}

TEST_P(BackendTest, TokensUseTheirExecutor) {
    boost::asio::thread_pool elsewhere(1);
    std::promise<bool> result;
    reactor_->async_perform(
        {.op = Opcode::stat, .path = directory_.path()},
        boost::asio::bind_executor(elsewhere.get_executor(), [&](boost::system::error_code error,
                                                                 const Completion& completion) {
            EXPECT_FALSE(error);
            EXPECT_EQ(completion.status.kind, FileKind::directory);
            result.set_value(elsewhere.get_executor().running_in_this_thread());
        }));
    EXPECT_TRUE(result.get_future().get());
    elsewhere.join();
}

TEST_P(BackendTest, DroppedFuturesDetach) {
    const int file = create("file", Caching::direct);
    Block block(1 << 20);
    block.fill(5);
    for (std::uint64_t i = 0; i < 16; ++i)
        static_cast<void>(reactor_->async_write(file, block.span(), i << 20));
    reactor_.reset();
    reactor_ = make();
    EXPECT_EQ(status("file").size, 16u << 20);
    close(file);
}

TEST_P(BackendTest, DestructionWaitsForEveryHandler) {
    const int file = create("file", Caching::direct);
    const Block block(65536);
    std::atomic<int> ended = 0;
    for (std::uint64_t i = 0; i < 500; ++i)
        reactor_->submit({.op = Opcode::write,
                          .file = file,
                          .data = block.data(),
                          .length = block.size(),
                          .offset = i * block.size()},
                         [&](Completion completion) {
                             EXPECT_FALSE(completion.error);
                             ++ended;
                         });
    reactor_.reset();
    EXPECT_EQ(ended, 500);
    reactor_ = make();
    close(file);
}

TEST_P(BackendTest, SubmittingDuringDestructionIsStopped) {
    // A handler that submits until it is refused: the destructor lets every
    // round end, and ends itself.
    Reactor* reactor = reactor_.get();
    std::promise<void> started;
    int rounds = 0;
    std::error_code last;
    std::function<void(Completion)> again = [&](Completion completion) {
        last = completion.error;
        if (++rounds == 1)
            started.set_value();
        if (!completion.error)
            reactor->submit({.op = Opcode::stat, .path = directory_.path()}, again);
    };
    reactor->submit({.op = Opcode::stat, .path = directory_.path()}, again);
    started.get_future().wait();
    reactor_.reset();
    EXPECT_EQ(last, make_error_code(Errc::io_stopped));
    EXPECT_GE(rounds, 2);
}

TEST_P(BackendTest, WhatIsOpenedDuringDestructionCanBeClosed) {
    const int file = create("file");
    Reactor* reactor = reactor_.get();
    std::error_code refused, closed = make_error_code(Errc::io_stopped);
    // Until the destructor refuses; that it has begun is not to be seen otherwise.
    std::function<void(Completion)> again = [&](Completion completion) {
        refused = completion.error;
        if (refused)
            reactor->submit({.op = Opcode::close, .file = file},
                            [&](Completion ended) { closed = ended.error; });
        else
            reactor->submit({.op = Opcode::stat, .path = directory_.path()}, again);
    };
    reactor->submit({.op = Opcode::stat, .path = directory_.path()}, again);
    reactor_.reset();
    EXPECT_EQ(refused, make_error_code(Errc::io_stopped));
    EXPECT_FALSE(closed) << closed.message();
}

TEST_P(BackendTest, RunsOnTheEmbeddersContext) {
    boost::asio::io_context context(1);
    auto embedded = make_on(context);
    const int file = create("file", Caching::direct);
    const Block block(4096);
    int ended = 0;
    for (std::uint64_t i = 0; i < 100; ++i)
        embedded->submit({.op = Opcode::write,
                          .file = file,
                          .data = block.data(),
                          .length = 4096,
                          .offset = i * 4096},
                         [&](Completion completion) {
                             EXPECT_FALSE(completion.error);
                             EXPECT_TRUE(embedded->running_in_this_thread());
                             ++ended;
                         });
    context.run(); // ends of itself when nothing is left
    EXPECT_EQ(ended, 100);
    auto future = embedded->async_fsync(file);
    embedded.reset(); // with work in flight: the destructor runs the context
    EXPECT_EQ(future.wait_for(std::chrono::seconds(0)), std::future_status::ready);
    close(file);
}

TEST_P(BackendTest, AHandlerMayDestroyAnEmbeddedReactor) {
    boost::asio::io_context context(1);
    auto embedded = make_on(context);
    int ended = 0;
    for (int i = 0; i < 200; ++i)
        embedded->async_perform({.op = Opcode::stat, .path = directory_.path()},
                                [&](boost::system::error_code error, const Completion&) {
                                    EXPECT_FALSE(error);
                                    if (++ended == 10) {
                                        embedded.reset();
                                        EXPECT_EQ(ended, 200);
                                    }
                                });
    context.run();
    EXPECT_EQ(ended, 200);
}

TEST_P(BackendTest, WhatAHandlerThrowsLeavesThroughTheContext) {
    boost::asio::io_context context(1);
    auto embedded = make_on(context);
    int ended = 0;
    for (int i = 0; i < 3; ++i)
        embedded->submit({.op = Opcode::stat, .path = directory_.path()}, [&](Completion) {
            if (++ended == 2)
                throw std::runtime_error("thrown");
        });
    EXPECT_THROW(context.run(), std::runtime_error);
    context.restart();
    context.run();
    EXPECT_EQ(ended, 3);
}

TEST_P(BackendTest, EmbeddedAndRunByAnotherThread) {
    boost::asio::io_context context(1);
    auto guard = boost::asio::make_work_guard(context);
    std::thread runner([&] { context.run(); });
    auto embedded = make_on(context);
    EXPECT_EQ(embedded->wait({.op = Opcode::stat, .path = directory_.path()}).status.kind,
              FileKind::directory);
    std::atomic<int> ended = 0;
    for (int i = 0; i < 100; ++i)
        embedded->submit({.op = Opcode::stat, .path = directory_.path()},
                         [&](Completion) { ++ended; });
    embedded.reset();
    EXPECT_EQ(ended, 100);
    guard.reset();
    runner.join();
}

TEST_P(BackendTest, DescribesTheFileSystem) {
    const auto info = reactor_->file_system(directory_.path());
    ASSERT_TRUE(info) << info.error().message();
    EXPECT_FALSE(info->type.empty());
    EXPECT_GE(info->offset_alignment, 512u);
    EXPECT_EQ(4096 % info->memory_alignment, 0u);
    const auto again = reactor_->file_system(directory_.path());
    EXPECT_EQ(again->type, info->type);
    EXPECT_FALSE(reactor_->file_system(directory_ / "none"));
    const Completion listed = reactor_->wait({.op = Opcode::list, .path = directory_.path()});
    EXPECT_TRUE(listed.entries.empty()) << "the probe file was left behind";
}

TEST_P(BackendTest, OwnsBuffersOfTheConfiguredSize) {
    reactor_ = make({.buffer_bytes = 65536, .buffer_count = 2});
    EXPECT_EQ(reactor_->info().buffer_count, 2u);
    BufferPool& pool = reactor_->buffers();
    EXPECT_EQ(&pool, &reactor_->buffers());
    EXPECT_EQ(pool.try_acquire().span().size(), 65536u);
}

} // namespace

} // namespace safering::test
