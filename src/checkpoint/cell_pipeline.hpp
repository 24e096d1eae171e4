// Moves the cells of a request plan through the buffer pool: acquire a buffer, move the bytes between memory
// and image, transfer, release. What a save and a load have in common.
//
//   1. A buffer from the pool and the next cell meet in load(), which says what to transfer; a save fills the
//      image in it. The transfers go to the reactor as one batch, at once while fewer than two thirds of the buffers
//      are in transfer; the others wait, loaded, for one that ends.
//   2. When the last has ended, the cell waits for its turn in unload(); a load checks and copies out there. It may
//      keep the buffer for others who copy out of it, while the loop goes on with those that are left.
//   3. A turn unloads one cell and loads one into the buffer that became free (unless others wait for it):
//      one copy, then the loop goes round, so that the disk gets its next request between two copies and
//      not after all of them.
//   4. The first error, or a stop that is asked for, ends the issue of new cells; on_idle() follows when all that was
//      in flight has ended.
// Memory may end at any of this, and what has begun must end all the same: nothing between a completion and the end
// of its cell needs any, and what does need some (a copy, the next cell) fails the pipeline where there is none.
// All of it on the reactor's executor. The copy runs there too: the buffer is hot in that core's cache and a
// single thread copies and digests faster than a disk writes (measured: a second thread only costs).
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include <boost/asio/steady_timer.hpp>

#include <safering/handler_memory.hpp>
#include <safering/reactor.hpp>

#include "checkpoint/work_meter.hpp"
#include "io/buffer_pool.hpp"
#include "out_of_memory.hpp"
#include "plan/box.hpp"
#include "plan/request_planner.hpp"

namespace safering::checkpoint {

class CellPipeline : public std::enable_shared_from_this<CellPipeline> {
  public:
    struct File {
        std::string path;
        /// For transfers that are whole blocks, and for the others; may be the same.
        int direct = -1;
        int buffered = -1;
        std::uint64_t file_bytes = 0;
        plan::RequestPlan plan;
        /// Whether a transfer went through it.
        bool direct_used = false;
        bool buffered_used = false;
        // Cells handed out, and cells not yet ended.
        std::size_t next = 0;
        std::size_t in_flight = 0;
    };
    struct Cell {
        std::size_t file = 0;
        const plan::CellRequest* request = nullptr;
        BufferPool::Buffer buffer;
        /// What is transferred: the buffer, or memory of load()'s choice.
        std::byte* image = nullptr;
        /// File offset of the image's first byte.
        std::uint64_t image_begin = 0;
        std::vector<plan::Transfer> transfers;
        /// Its segments lie in the image without a gap.
        bool whole = false;
        /// The next to be handed to the reactor: a transfer, and how much of it has been.
        std::size_t next = 0;
        std::uint64_t next_bytes = 0;
        /// Requests that have not ended.
        std::size_t in_flight = 0;
        HandlerMemory unloading_memory{};
    };
    using Progress = std::function<void(std::uint64_t, std::uint64_t)>;

    virtual ~CellPipeline();

  protected:
    CellPipeline(Reactor& reactor, Opcode op, Progress progress, std::stop_token stop);

    enum class Loaded {
        now,
        later, ///< finish_loading() follows, also after a failure
    };
    /// How long to wait before the next cell.
    virtual std::chrono::nanoseconds pause() { return {}; }
    /// Sets cell.image_begin and, when the image is loaded, cell.transfers.
    virtual Result<Loaded> load(const std::shared_ptr<Cell>& cell) = 0;
    void finish_loading(const std::shared_ptr<Cell>& cell);
    enum class Unloaded {
        now,
        later, ///< finish_unloading() follows, also after a failure
    };
    virtual Result<Unloaded> unload(const std::shared_ptr<Cell>& cell) = 0;
    void finish_unloading(const std::shared_ptr<Cell>& cell); // needs no memory
    /// The box of an item in its stored tensor, and where that begins in the file; for strided items only.
    virtual const plan::FileBox& box_of(std::uint32_t item) const = 0;
    virtual std::uint64_t tensor_begin_of(std::uint32_t item) const = 0;
    /// The last cell of a file has ended, all of them well.
    virtual void on_file_done(std::size_t file) = 0;
    /// Nothing is in flight and nothing will be issued any more: all cells have ended, or one has failed.
    virtual void on_idle() = 0;

    /// Makes the reactor's buffers on the caller's thread, where a failure can be reported (and paid for).
    static Result<void> make_buffers(Reactor& reactor);
    /// Starts on the files in order. On the executor.
    void start_cells();
    /// A turn comes with the loop, not inside whatever calls here; it begins with on_turn(). Needs no memory.
    void schedule_turn();
    virtual void on_turn() {}
    /// What an exchange with other ranks has said. It is heard in the next turn, so that nothing ends the exchange inside.
    struct Heard {
        bool ready = false;
        bool done = false;
        std::optional<Error> failed{};
    };
    /// Handlers for the exchange, which need no memory when they are called.
    std::function<void()> hear(bool Heard::* what);
    std::function<void(Error)> hear_failure();
    /// A stop that is asked for ends the waiting for other ranks and for buffers too, not only the next cell. From
    /// start_cells() on in any case.
    void heed_stop_at_once();
    /// For what, in words; empty: for nothing.
    virtual std::string awaited() const { return {}; }
    /// Submits something beside the cells; idle() waits for it too. An error of it fails the pipeline, after
    /// `explain` has said what it means.
    /// Throws std::bad_alloc, and has submitted nothing then.
    void submit_other(Request request, std::string path,
                      std::function<void(const Completion&)> on_complete = {},
                      std::function<void(Error&)> explain = {});
    void fail(Error error);
    /// What `step` finds no memory for is the pipeline's failure. Whether it found it.
    template <typename F>
    bool try_step(F&& step) {
        if (had_memory(std::forward<F>(step)))
            return true;
        fail(out_of_memory());
        return false;
    }
    /// The first error, before anything else ends because of it; without words where there is no memory for them.
    virtual void on_fail(const std::string&) {}
    /// Something else is in flight, or has ended: on_idle() waits for it.
    void hold() { ++in_flight_; }
    void release() {
        --in_flight_;
        settle();
    }
    /// The bytes of a cell that belong to its segments, rising; gaps as plan::cell_runs has them.
    std::vector<ByteRange> runs_of(const Cell& cell, std::uint64_t gap_bytes = 0) const;
    /// A cell that came without the pipeline, for progress.
    void count_done(const File& file, const plan::CellRequest& request);

    Reactor& reactor_;
    std::vector<File> files_;
    std::optional<Error> error_;
    Heard heard_;
    /// Bytes of all segments, for progress.
    std::uint64_t total_bytes_ = 0;
    WorkMeter meter_;

  private:
    void cancel();
    bool more_cells();
    void acquire();
    void acquire_after(std::chrono::nanoseconds left);
    void turn(BufferPool::Buffer buffer = {});
    void load_next(BufferPool::Buffer buffer);
    void begin_transfers();
    plan::Transfer take_request(Cell& cell) const;
    bool submit_transfers(const std::shared_ptr<Cell>& cell);
    Unloaded end_cell(const std::shared_ptr<Cell>& cell);
    void settle_cell(const Cell& cell);
    void end_transfer(const std::shared_ptr<Cell>& cell, ByteRange range,
                      const Completion& completion);
    void settle();

    Opcode op_;
    Progress progress_;
    std::stop_token stop_;
    HandlerMemory stop_memory_;
    std::optional<std::stop_callback<std::function<void()>>> on_stop_;
    std::size_t file_ = 0;
    std::size_t in_flight_ = 0;
    std::uint64_t done_bytes_ = 0;
    /// Bytes of a request, at most, where it goes directly.
    const std::uint64_t transfer_bytes_;
    // Cells on their way to the disk: loaded, in transfer, and ended.
    const std::size_t most_in_transfer_;
    std::size_t in_transfer_ = 0;
    // Each has a buffer, so that they have room for all from the start.
    std::vector<std::shared_ptr<Cell>> loaded_;
    std::vector<std::shared_ptr<Cell>> ended_;
    bool acquiring_ = false;
    HandlerMemory acquire_memory_;
    boost::asio::steady_timer timer_;
    bool turn_scheduled_ = false;
    HandlerMemory turn_memory_;
    bool cells_started_ = false;
};

} // namespace safering::checkpoint
