#include "checkpoint/file_reader.hpp"

#include <algorithm>
#include <cstring>
#include <deque>
#include <future>
#include <optional>
#include <utility>

#include <safering/byte_range.hpp>

#include "io/buffer_pool.hpp"
#include "io/touch_ahead.hpp"
#include "out_of_memory.hpp"
#include "plan/copy_kernels.hpp"

namespace safering::checkpoint {

namespace {

// Reads below this are a parser's; the next ones come from the window.
constexpr std::uint64_t small_bytes = 16 << 10;
constexpr std::uint64_t small_window_bytes = 64 << 10;
// From here on the disk is quicker than the page cache.
constexpr std::uint64_t large_bytes = 1 << 20;
constexpr std::size_t pieces_at_once = 8;

// A part of a large read that is one request.
struct Piece {
    int file = -1;
    ByteRange range;
    /// Through a buffer of the pool, as the destination does not lie as direct I/O wants it.
    bool bounced = false;
};

bool lies_as_the_file(std::span<std::byte> memory, std::uint64_t offset) {
    return (reinterpret_cast<std::uintptr_t>(memory.data()) - offset) % block_bytes == 0;
}

// Kept alive by its own requests.
class LargeRead : public std::enable_shared_from_this<LargeRead> {
  public:
    LargeRead(Reactor& reactor, const std::string& path, std::span<std::byte> memory,
              std::uint64_t offset, std::deque<Piece> pieces)
        : reactor_(reactor), path_(path), memory_(memory), wanted_{offset, offset + memory.size()},
          pieces_(std::move(pieces)), running_(std::min(pieces_at_once, pieces_.size())) {}

    Result<void> run() {
        auto ended = ended_.get_future();
        const std::size_t chains = running_;
        for (std::size_t i = 0; i < chains; ++i)
            next();
        ended.wait();
        if (error_)
            return std::unexpected(std::move(*error_));
        return {};
    }

  private:
    void next() {
        std::optional<Piece> piece;
        {
            const std::lock_guard lock(mutex_);
            if (!error_ && !pieces_.empty()) {
                piece = pieces_.front();
                pieces_.pop_front();
            } else if (--running_ != 0) {
                return;
            }
        }
        if (!piece)
            return ended_.set_value();
        if (!piece->bounced)
            return submit(*piece, {});
        const bool asked = had_memory([&] {
            reactor_.buffers().acquire(
                [self = shared_from_this(), piece = *piece](BufferPool::Buffer buffer) {
                    self->submit(piece, std::move(buffer));
                });
        });
        if (!asked)
            give_up();
    }

    // This chain ends, and the others with their next piece.
    void give_up() {
        {
            const std::lock_guard lock(mutex_);
            if (!error_)
                error_ = out_of_memory();
        }
        next();
    }

    void submit(const Piece& piece, BufferPool::Buffer buffer) {
        std::byte* const data =
            piece.bounced ? buffer.data() : memory_.data() + (piece.range.begin - wanted_.begin);
        const Request request{.op = Opcode::read,
                              .file = piece.file,
                              .data = data,
                              .length = piece.range.size(),
                              .offset = piece.range.begin,
                              .minimum =
                                  std::min(piece.range.end, wanted_.end) - piece.range.begin};
        const bool submitted = had_memory([&] {
            reactor_.submit(request, [self = shared_from_this(), piece, buffer = std::move(buffer)](
                                         const Completion& completion) mutable {
                self->end(piece, std::move(buffer), completion);
            });
        });
        if (!submitted)
            give_up();
    }

    void end(const Piece& piece, BufferPool::Buffer buffer, const Completion& completion) {
        if (completion.error) {
            const std::lock_guard lock(mutex_);
            if (!error_ && !had_memory([&] {
                    error_ = to_error({.op = Opcode::read,
                                       .length = piece.range.size(),
                                       .offset = piece.range.begin},
                                      completion, path_);
                }))
                error_ = Error{.code = completion.error};
        } else if (piece.bounced) {
            const std::uint64_t begin = std::max(piece.range.begin, wanted_.begin);
            const std::uint64_t end = std::min(piece.range.end, wanted_.end);
            plan::copy_streaming(memory_.data() + (begin - wanted_.begin),
                                 buffer.data() + (begin - piece.range.begin), end - begin);
            plan::streaming_fence();
        }
        buffer = {};
        next();
    }

    Reactor& reactor_;
    const std::string path_;
    const std::span<std::byte> memory_;
    const ByteRange wanted_;
    std::mutex mutex_;
    std::deque<Piece> pieces_;
    std::size_t running_;
    std::optional<Error> error_;
    std::promise<void> ended_;
};

} // namespace

FileReader::FileReader(std::shared_ptr<Reactor> reactor, std::string path)
    : reactor_(std::move(reactor)), path_(std::move(path)) {}

Result<std::unique_ptr<FileReader>> FileReader::open(std::shared_ptr<Reactor> reactor,
                                                     const std::string& path) {
    std::unique_ptr<FileReader> reader(new FileReader(std::move(reactor), path));
    auto opened = open_all(*reader->reactor_,
                           {{.op = Opcode::open, .path = path},
                            {.op = Opcode::open, .caching = Caching::direct, .path = path}});
    if (!opened)
        return std::unexpected(std::move(opened.error()));
    reader->buffered_ = std::move((*opened)[0]);
    reader->direct_ = std::move((*opened)[1]);
    const auto wrong = [&](std::error_code code) {
        return std::unexpected(Error{.code = code, .operation = "read file", .file = path});
    };
    const FileStatus &status = reader->buffered_.status(), &again = reader->direct_.status();
    if (status.kind == FileKind::directory)
        return wrong(std::make_error_code(std::errc::is_a_directory));
    if (status.kind != FileKind::regular)
        return wrong(make_error_code(Errc::checkpoint_not_a_file));
    if (status.device != again.device || status.inode != again.inode)
        return open(std::move(reader->reactor_), path); // replaced between the two
    return reader;
}

Result<std::size_t> FileReader::read(std::span<std::byte> memory, std::uint64_t offset) {
    if (offset >= size())
        return 0;
    memory = memory.first(std::min<std::uint64_t>(memory.size(), size() - offset));
    if (memory.empty())
        return 0;
    auto done =
        memory.size() < small_bytes ? read_small(memory, offset) : read_large(memory, offset);
    if (!done)
        return std::unexpected(std::move(done.error()));
    return memory.size();
}

Result<void> FileReader::read_small(std::span<std::byte> memory, std::uint64_t offset) {
    const std::lock_guard lock(mutex_);
    if (offset < window_begin_ || offset + memory.size() > window_begin_ + window_.size()) {
        const std::uint64_t begin = round_down(offset, block_bytes);
        // It holds nothing until it holds what it says, whatever is thrown before.
        std::vector<std::byte> read = std::exchange(window_, {});
        read.resize(std::min(small_window_bytes, size() - begin));
        auto done = perform(*reactor_, {.op = Opcode::read,
                                        .file = buffered_.descriptor(),
                                        .data = read.data(),
                                        .length = read.size(),
                                        .offset = begin,
                                        .path = path_});
        if (!done)
            return std::unexpected(std::move(done.error()));
        window_ = std::move(read);
        window_begin_ = begin;
    }
    std::memcpy(memory.data(), window_.data() + (offset - window_begin_), memory.size());
    return {};
}

Result<void> FileReader::read_large(std::span<std::byte> memory, std::uint64_t offset) {
    const ByteRange wanted{offset, offset + memory.size()};
    const std::uint64_t most = round_down(reactor_->info().buffer_bytes, block_bytes);
    std::deque<Piece> pieces;
    const auto cut = [&](ByteRange range, Piece piece) {
        for (std::uint64_t at = range.begin; at < range.end; at += most) {
            piece.range = {at, std::min(at + most, range.end)};
            pieces.push_back(piece);
        }
    };
    if (!direct_.direct() || memory.size() < large_bytes) {
        cut(wanted, {.file = buffered_.descriptor(), .range = {}});
    } else if (lies_as_the_file(memory, offset)) {
        const ByteRange whole{round_up(wanted.begin, block_bytes),
                              round_down(wanted.end, block_bytes)};
        cut({wanted.begin, whole.begin}, {.file = buffered_.descriptor(), .range = {}});
        cut(whole, {.file = direct_.descriptor(), .range = {}});
        cut({whole.end, wanted.end}, {.file = buffered_.descriptor(), .range = {}});
    } else {
        try { // where a failure can be reported
            (void)reactor_->buffers();
        } catch (const Exception& exception) {
            return std::unexpected(exception.error());
        }
        cut({round_down(wanted.begin, block_bytes), round_up(wanted.end, block_bytes)},
            {.file = direct_.descriptor(), .range = {}, .bounced = true});
    }
    const std::jthread touching = io::touch_ahead({memory});
    return std::make_shared<LargeRead>(*reactor_, path_, memory, offset, std::move(pieces))->run();
}

} // namespace safering::checkpoint
