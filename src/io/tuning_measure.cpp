// Measures a file system through reactors as saves and loads have them, on a file without a name. All ways take
// turns in every round, beginning with another one each, so that a machine that drifts is unjust to none of them.
#include <safering/tuning.hpp>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <future>
#include <random>
#include <span>

#include <boost/asio/post.hpp>
#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>

#include <safering/byte_range.hpp>

#include "io/descriptor.hpp"
#include "io/file_system.hpp"
#include "io/huge_memory.hpp"
#include "io/mount_name.hpp"
#include "io/posix_ops.hpp"
#include "out_of_memory.hpp"

namespace safering {

namespace {

using Clock = std::chrono::steady_clock;

constexpr unsigned most_rounds = 5;
// No round begins later.
constexpr std::chrono::seconds most_time{8};

struct Scratch {
    std::string directory;
    Descriptor file{};
    std::uint64_t bytes = 0;
    /// For what the row with the most has in flight.
    std::shared_ptr<std::byte> memory{};
};

// The file from its first block to its last, as the row says. All but run() on the reactor's thread.
class Stream {
  public:
    Stream(Reactor& reactor, const Scratch& scratch, Opcode op, const TuningRow& row)
        : reactor_(reactor), scratch_(scratch), op_(op), row_(row) {}

    /// Until all has ended; a write is durable then. Bytes a second.
    Result<double> run() {
        const auto begin = Clock::now();
        auto ended = ended_->get_future();
        boost::asio::post(reactor_.executor(), [this] {
            for (unsigned slot = 0; slot < row_.in_flight; ++slot)
                submit(slot);
            release();
        });
        ended.wait();
        if (!error_ && op_ == Opcode::write) {
            const Request request{.op = Opcode::fsync, .file = scratch_.file.get()};
            if (const Completion done = reactor_.wait(request); done.error)
                error_ = to_error(request, done, scratch_.directory);
        }
        if (error_)
            return std::unexpected(std::move(*error_));
        const std::chrono::duration<double> took = Clock::now() - begin;
        return static_cast<double>(scratch_.bytes) / took.count();
    }

  private:
    void submit(unsigned slot) {
        if (error_ || submitted_ == scratch_.bytes)
            return;
        Request request{.op = op_,
                        .file = scratch_.file.get(),
                        .data = scratch_.memory.get() + slot * row_.block_bytes,
                        .length = row_.block_bytes,
                        .offset = submitted_};
        const bool taken = had_memory([&] {
            reactor_.submit(request, [this, slot, offset = request.offset](Completion done) {
                if (done.error && !error_)
                    error_ = to_error({.op = op_, .length = row_.block_bytes, .offset = offset},
                                      done, scratch_.directory);
                submit(slot);
                release();
            });
        });
        if (taken) {
            ++held_;
            submitted_ += row_.block_bytes;
        } else {
            error_ = out_of_memory();
        }
    }
    void release() {
        if (--held_ != 0)
            return;
        const auto ended =
            ended_; // who waits may be gone with this stream before set_value() returns
        ended->set_value();
    }

    Reactor& reactor_;
    const Scratch& scratch_;
    const Opcode op_;
    const TuningRow& row_;
    std::uint64_t submitted_ = 0;
    /// Requests in flight, and run()'s own first turn.
    unsigned held_ = 1;
    std::optional<Error> error_;
    std::shared_ptr<std::promise<void>> ended_ = std::make_shared<std::promise<void>>();
};

// The default and its neighbours. With threads, as many of these as requests: fewer would be what is in flight.
std::vector<TuningRow> ways(BackendKind backend, std::uint64_t file_bytes) {
    constexpr std::uint64_t mib = std::uint64_t{1} << 20;
    const ReactorOptions usual;
    const bool by_threads = backend == BackendKind::threads;
    std::vector<TuningRow> rows;
    const auto add = [&](std::uint64_t block_bytes, unsigned in_flight, unsigned threads) {
        if (in_flight * block_bytes <= file_bytes)
            rows.push_back(
                {.block_bytes = block_bytes, .in_flight = in_flight, .threads = threads});
    };
    if (by_threads)
        add(usual.buffer_bytes, 8, usual.threads);
    for (const unsigned in_flight : {4u, 8u, 16u, 32u})
        add(usual.buffer_bytes, in_flight, by_threads ? in_flight : usual.threads);
    for (const unsigned in_flight : {16u, 32u, 64u})
        add(mib, in_flight, by_threads ? in_flight : usual.threads);
    return rows;
}

// Bytes that neither a disk nor a server can make fewer of.
void fill(const Scratch& scratch, std::uint64_t bytes) {
    std::mt19937_64 random(1);
    auto* words = reinterpret_cast<std::uint64_t*>(scratch.memory.get());
    std::generate(words, words + bytes / sizeof *words, random);
}

Result<void> prepare(Scratch& scratch, std::span<const TuningRow> rows) {
    scratch.file = open_unnamed(scratch.directory);
    const int flags = !scratch.file ? -1 : ::fcntl(scratch.file.get(), F_GETFL);
    if (flags < 0 || ::fcntl(scratch.file.get(), F_SETFL, flags | O_DIRECT) != 0)
        return std::unexpected(Error{.code = posix::last_error(),
                                     .operation = "create a scratch file in",
                                     .file = scratch.directory});
    std::uint64_t memory_bytes = 0;
    for (const TuningRow& row : rows)
        memory_bytes = std::max(memory_bytes, row.in_flight * row.block_bytes);
    auto memory = io::allocate_huge(memory_bytes);
    if (!memory)
        return std::unexpected(std::move(memory.error()));
    scratch.memory = std::move(*memory);
    fill(scratch, memory_bytes);
    return {};
}

// As a save finds its files: with all their blocks, none of them written.
Result<void> allocate(const Scratch& scratch, Reactor& reactor) {
    const Request steps[] = {
        {.op = Opcode::truncate, .file = scratch.file.get()},
        {.op = Opcode::allocate, .file = scratch.file.get(), .length = scratch.bytes},
    };
    for (const Request& step : steps)
        if (const Completion done = reactor.wait(step); done.error)
            return std::unexpected(to_error(step, done, scratch.directory));
    return {};
}

double median(std::vector<double> values) {
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::ranges::nth_element(values, middle);
    return *middle;
}

struct Way {
    std::unique_ptr<Reactor> reactor;
    std::vector<double> writes{};
    std::vector<double> reads{};
};

Result<void> sample(Way& way, const TuningRow& row, const Scratch& scratch) {
    if (auto allocated = allocate(scratch, *way.reactor); !allocated)
        return allocated;
    auto write = Stream(*way.reactor, scratch, Opcode::write, row).run();
    if (!write)
        return std::unexpected(std::move(write.error()));
    auto read = Stream(*way.reactor, scratch, Opcode::read, row).run();
    if (!read)
        return std::unexpected(std::move(read.error()));
    way.writes.push_back(*write);
    way.reads.push_back(*read);
    return {};
}

// A full disk may show in any of the steps, where the file system cannot reserve blocks.
Error explained(Error error, const Scratch& scratch) {
    if (error.code == std::errc::no_space_on_device ||
        error.code == std::error_code(EDQUOT, std::system_category()))
        error.detail = fmt::format(
            "measuring needs {} MiB there for as long as it lasts; a smaller file may do",
            scratch.bytes >> 20);
    return error;
}

Result<Tuning> measure(const std::string& directory, const MeasureOptions& options) {
    if (options.file_bytes < MeasureOptions::least_file_bytes)
        return fail(std::make_error_code(std::errc::invalid_argument), "measure",
                    "the scratch file must be 32 MiB or larger");
    auto first = Reactor::create({.backend = options.backend});
    if (!first)
        return std::unexpected(std::move(first.error()));
    const auto file_system = (*first)->file_system(directory);
    if (!file_system)
        return std::unexpected(file_system.error());
    if (!file_system->direct)
        return std::unexpected(
            Error{.code = std::make_error_code(std::errc::operation_not_supported),
                  .operation = "measure",
                  .file = directory,
                  .detail = file_system->type + " refuses O_DIRECT, and what goes through the page "
                                                "cache does not depend on requests in flight"});
    Scratch scratch;
    scratch.directory = directory;
    scratch.bytes = round_down(options.file_bytes, ReactorOptions{}.buffer_bytes);
    Tuning out{.file_system = file_system_name(directory),
               .backend = (*first)->info().backend,
               .measured = fmt::format("{:%FT%TZ}", fmt::gmtime(std::time(nullptr))),
               .file_bytes = scratch.bytes,
               .rows = ways((*first)->info().backend, scratch.bytes),
               .chosen = 0};
    std::vector<Way> all;
    for (const TuningRow& row : out.rows) {
        ReactorOptions made = options_of(row);
        made.backend = options.backend;
        auto reactor = Reactor::create(made);
        if (!reactor)
            return std::unexpected(std::move(reactor.error()));
        all.push_back({.reactor = std::move(*reactor)});
    }
    if (auto prepared = prepare(scratch, out.rows); !prepared)
        return std::unexpected(std::move(prepared.error()));
    // The first touch of new blocks is nobody's.
    if (auto done = sample(all.front(), out.rows.front(), scratch); !done)
        return std::unexpected(explained(std::move(done.error()), scratch));
    all.front() = {.reactor = std::move(all.front().reactor)};
    const auto begin = Clock::now();
    for (unsigned round = 0;
         round < most_rounds && (round == 0 || Clock::now() - begin < most_time); ++round)
        for (std::size_t i = 0; i < all.size(); ++i) {
            const std::size_t turn = (i + round) % all.size();
            if (auto done = sample(all[turn], out.rows[turn], scratch); !done)
                return std::unexpected(explained(std::move(done.error()), scratch));
        }
    for (std::size_t i = 0; i < all.size(); ++i) {
        out.rows[i].write_rate = median(std::move(all[i].writes));
        out.rows[i].read_rate = median(std::move(all[i].reads));
    }
    out.chosen = choose_row(out.rows);
    return out;
}

} // namespace

Result<Tuning> measure_tuning(const std::string& directory, const MeasureOptions& options) {
    return or_out_of_memory([&] { return measure(directory, options); });
}

} // namespace safering
