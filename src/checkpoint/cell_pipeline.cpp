#include "checkpoint/cell_pipeline.hpp"

#include <algorithm>
#include <utility>

#include <boost/asio/post.hpp>

#include "plan/cell_runs.hpp"

namespace safering::checkpoint {

namespace {

// A disk may end all that it has at once, and then waits for the first copy: so a third of the buffers are kept
// loaded, to be handed over before any copy is made.
std::size_t most_in_transfer(std::size_t buffers) {
    return buffers - buffers / 3;
}

template <typename T>
T take_first(std::vector<T>& row) {
    T first = std::move(row.front());
    row.erase(row.begin());
    return first;
}

} // namespace

CellPipeline::CellPipeline(Reactor& reactor, Opcode op, Progress progress, std::stop_token stop)
    : reactor_(reactor), op_(op), progress_(std::move(progress)), stop_(std::move(stop)),
      transfer_bytes_(reactor.info().transfer_bytes),
      most_in_transfer_(most_in_transfer(reactor.info().buffer_count)), timer_(reactor.executor()) {
    const std::size_t buffers = reactor.info().buffer_count;
    loaded_.reserve(buffers);
    ended_.reserve(buffers);
}
CellPipeline::~CellPipeline() = default;

Result<void> CellPipeline::make_buffers(Reactor& reactor) {
    try {
        (void)reactor.buffers();
    } catch (const Exception& exception) {
        return std::unexpected(exception.error());
    }
    return {};
}

std::vector<ByteRange> CellPipeline::runs_of(const Cell& cell, std::uint64_t gap_bytes) const {
    if (!cell.request->gaps || cell.whole)
        return {cell.request->range};
    return plan::cell_runs(
        files_[cell.file].plan, *cell.request, gap_bytes,
        [this](std::uint32_t item) -> const plan::FileBox& { return box_of(item); },
        [this](std::uint32_t item) { return tensor_begin_of(item); });
}

void CellPipeline::start_cells() {
    cells_started_ = true;
    for (const File& file : files_)
        for (const plan::Segment& segment : file.plan.segments)
            total_bytes_ += segment.range.size();
    if (!on_stop_)
        try_step([this] { heed_stop_at_once(); });
    acquire();
    settle();
}

void CellPipeline::submit_other(Request request, std::string path,
                                std::function<void(const Completion&)> on_complete,
                                std::function<void(Error&)> explain) {
    const Request shown{.op = request.op, .path = path};
    reactor_.submit(std::move(request),
                    [self = shared_from_this(), shown, on_complete = std::move(on_complete),
                     explain = std::move(explain)](Completion completion) {
                        if (completion.error)
                            self->try_step([&] {
                                Error error = to_error(shown, completion);
                                if (explain)
                                    explain(error);
                                self->fail(std::move(error));
                            });
                        if (on_complete)
                            on_complete(completion);
                        --self->in_flight_;
                        self->settle();
                    });
    ++in_flight_;
}

void CellPipeline::fail(Error error) {
    if (error_)
        return;
    error_ = std::move(error);
    std::string why;
    (void)had_memory([&] { why = error_->message(); });
    on_fail(why);
    // Whoever has all the buffers may keep them for long.
    const auto self = shared_from_this();
    if (acquiring_ && reactor_.buffers().withdraw(this)) {
        acquiring_ = false;
        schedule_turn();
    }
}

void CellPipeline::cancel() {
    try_step([this] {
        fail({.code = std::make_error_code(std::errc::operation_canceled),
              .operation = op_ == Opcode::read ? "read data" : "write data",
              .detail = awaited()});
    });
}

void CellPipeline::heed_stop_at_once() {
    on_stop_.emplace(stop_, [self = shared_from_this()] {
        boost::asio::post(self->reactor_.executor(),
                          in_memory(self->stop_memory_, [self] { self->cancel(); }));
    });
}

std::function<void()> CellPipeline::hear(bool Heard::* what) {
    return [self = shared_from_this(), what] {
        self->heard_.*what = true;
        self->schedule_turn();
    };
}

std::function<void(Error)> CellPipeline::hear_failure() {
    return [self = shared_from_this()](Error error) {
        self->heard_.failed = std::move(error);
        self->schedule_turn();
    };
}

bool CellPipeline::more_cells() {
    while (file_ < files_.size() && files_[file_].next == files_[file_].plan.requests.size())
        ++file_;
    if (!error_ && stop_.stop_requested() && file_ < files_.size())
        cancel();
    return !error_ && file_ < files_.size();
}

// One request for a buffer at a time; the pool serves those who wait in their order.
void CellPipeline::acquire() {
    if (!acquiring_ && more_cells())
        acquiring_ = try_step([this] { acquire_after(pause()); });
}

// In short steps, as the limits may be lifted and a stop may be asked for meanwhile. What the steps cost the processor
// is owed by the next cell: if this one waited for it, that wait would cost as well, and so on without an end.
void CellPipeline::acquire_after(std::chrono::nanoseconds left) {
    constexpr std::chrono::nanoseconds longest_step = std::chrono::milliseconds(20);
    static constexpr auto none = std::chrono::nanoseconds::zero();
    if (left <= none)
        return reactor_.buffers().acquire(
            [self = shared_from_this()](BufferPool::Buffer buffer) {
                boost::asio::post(
                    self->reactor_.executor(),
                    in_memory(self->acquire_memory_, [self, buffer = std::move(buffer)]() mutable {
                        self->acquiring_ = false;
                        self->turn(std::move(buffer));
                    }));
            },
            this);
    const auto step = std::min(left, longest_step);
    timer_.expires_after(step);
    timer_.async_wait(in_memory(
        acquire_memory_, [self = shared_from_this(), left, step](const boost::system::error_code&) {
            self->meter_.add_pause(step);
            self->acquiring_ = self->more_cells() && self->try_step([&] {
                self->acquire_after(self->pause() > none ? left - step : none);
            });
            self->settle();
        }));
}

void CellPipeline::schedule_turn() {
    if (std::exchange(turn_scheduled_, true))
        return;
    boost::asio::post(reactor_.executor(), in_memory(turn_memory_, [self = shared_from_this()] {
                          self->turn_scheduled_ = false;
                          self->turn();
                      }));
}

void CellPipeline::turn(BufferPool::Buffer buffer) {
    if (heard_.failed)
        fail(std::move(*std::exchange(heard_.failed, std::nullopt)));
    on_turn();
    if (!cells_started_)
        return;
    try_step([&] {
        if (!buffer && !ended_.empty()) {
            const std::shared_ptr<Cell> cell = take_first(ended_);
            if (end_cell(cell) == Unloaded::now && !reactor_.buffers().contended() &&
                pause() == std::chrono::nanoseconds::zero())
                buffer = std::move(cell->buffer);
        }
        if (buffer && more_cells())
            load_next(std::move(buffer));
    });
    buffer = {};
    acquire();
    if (!ended_.empty())
        schedule_turn(); // comes after the reactor's turn that load_next has asked for
    settle();
}

void CellPipeline::load_next(BufferPool::Buffer buffer) {
    auto cell = std::make_shared<Cell>();
    File& file = files_[file_];
    cell->file = file_;
    cell->request = &file.plan.requests[file.next++];
    cell->buffer = std::move(buffer);
    cell->image = cell->buffer.data();
    meter_.add_pieces(file.plan.segments_of(*cell->request).size());
    ++file.in_flight;
    hold();
    auto loaded = or_out_of_memory([&] { return load(cell); });
    if (!loaded)
        fail(std::move(loaded.error()));
    if (!loaded || *loaded == Loaded::now)
        finish_loading(cell);
}

void CellPipeline::finish_loading(const std::shared_ptr<Cell>& cell) {
    loaded_.push_back(cell);
    begin_transfers();
    --in_flight_;
}

void CellPipeline::begin_transfers() {
    while (!loaded_.empty()) {
        const bool idle = error_ || loaded_.front()->transfers.empty();
        if (!idle && in_transfer_ == most_in_transfer_)
            return;
        const std::shared_ptr<Cell> cell = take_first(loaded_);
        if (!idle && submit_transfers(cell)) {
            ++in_transfer_;
        } else {
            ended_.push_back(cell);
            schedule_turn();
        }
    }
}

// The next transfer of a cell, or what of it one request may be: up to the next multiple of transfer_bytes.
plan::Transfer CellPipeline::take_request(Cell& cell) const {
    plan::Transfer out = cell.transfers[cell.next];
    const std::uint64_t end = out.range.end;
    out.range.begin += cell.next_bytes;
    if (out.direct)
        out.range.end = std::min(end, (out.range.begin / transfer_bytes_ + 1) * transfer_bytes_);
    cell.next_bytes += out.range.size();
    if (out.range.end == end) {
        ++cell.next;
        cell.next_bytes = 0;
    }
    return out;
}

// A cell of short runs may have a million transfers; the reactor gets them in slices.
bool CellPipeline::submit_transfers(const std::shared_ptr<Cell>& cell) {
    constexpr std::size_t at_once = 512;
    File& file = files_[cell->file];
    std::size_t count = 0;
    const bool submitted = try_step([&] {
        std::vector<Reactor::Submission> batch;
        batch.reserve(std::min(at_once, cell->transfers.size() - cell->next));
        for (; count < at_once && cell->next < cell->transfers.size(); ++count) {
            const plan::Transfer transfer = take_request(*cell);
            (transfer.direct ? file.direct_used : file.buffered_used) = true;
            meter_.add_request(transfer.range.size(), transfer.direct);
            const std::uint64_t needed_end = op_ == Opcode::read
                                                 ? std::min(transfer.range.end, file.file_bytes)
                                                 : transfer.range.end;
            Request request{.op = op_,
                            .file = transfer.direct ? file.direct : file.buffered,
                            .data = cell->image + (transfer.range.begin - cell->image_begin),
                            .length = transfer.range.size(),
                            .offset = transfer.range.begin,
                            .minimum = needed_end - transfer.range.begin};
            batch.push_back(
                {std::move(request), [self = shared_from_this(), cell,
                                      range = transfer.range](const Completion& completion) {
                     self->end_transfer(cell, range, completion);
                 }});
        }
        reactor_.submit(batch);
    });
    if (!submitted)
        return false;
    meter_.submitted(count);
    cell->in_flight = count;
    in_flight_ += count;
    return true;
}

void CellPipeline::end_transfer(const std::shared_ptr<Cell>& cell, ByteRange range,
                                const Completion& completion) {
    if (completion.error)
        try_step([&] {
            fail(to_error({.op = op_, .length = range.size(), .offset = range.begin}, completion,
                          files_[cell->file].path));
        });
    --in_flight_;
    meter_.ended(completion.retries);
    if (--cell->in_flight != 0)
        return;
    if (!error_ && cell->next < cell->transfers.size() && submit_transfers(cell))
        return;
    --in_transfer_;
    ended_.push_back(cell);
    begin_transfers(); // before the copies of the turn
    schedule_turn();
}

CellPipeline::Unloaded CellPipeline::end_cell(const std::shared_ptr<Cell>& cell) {
    if (!error_) {
        hold();
        auto unloaded = or_out_of_memory([&] { return unload(cell); });
        if (unloaded && *unloaded == Unloaded::later)
            return Unloaded::later;
        --in_flight_;
        if (!unloaded)
            fail(std::move(unloaded.error()));
    }
    settle_cell(*cell);
    return Unloaded::now;
}

// The turn comes with the loop, not inside whatever calls here.
void CellPipeline::finish_unloading(const std::shared_ptr<Cell>& cell) {
    try_step([&] { settle_cell(*cell); });
    boost::asio::post(reactor_.executor(),
                      in_memory(cell->unloading_memory, [self = shared_from_this(), cell] {
                          --self->in_flight_;
                          BufferPool::Buffer buffer;
                          if (!self->reactor_.buffers().contended())
                              buffer = std::move(cell->buffer);
                          cell->buffer = {};
                          self->turn(std::move(buffer));
                      }));
}

void CellPipeline::settle_cell(const Cell& cell) {
    File& file = files_[cell.file];
    --file.in_flight;
    if (error_)
        return;
    count_done(file, *cell.request);
    if (file.in_flight == 0 && file.next == file.plan.requests.size())
        on_file_done(cell.file);
}

void CellPipeline::count_done(const File& file, const plan::CellRequest& request) {
    for (const plan::Segment& segment : file.plan.segments_of(request))
        done_bytes_ += segment.range.size();
    if (progress_ && cells_started_)
        progress_(done_bytes_, total_bytes_);
}

void CellPipeline::settle() {
    if (in_flight_ == 0 && ended_.empty() && !acquiring_ && cells_started_ && !more_cells()) {
        on_stop_.reset(); // it keeps the pipeline
        on_idle();
    }
}

} // namespace safering::checkpoint
