#include "checkpoint/write_job.hpp"

#include <algorithm>
#include <bit>
#include <ctime>
#include <future>

#include <boost/asio/post.hpp>
#include <fmt/format.h>

#include "checkpoint/attempt.hpp"
#include "checkpoint/check_source.hpp"
#include "checkpoint/manifest.hpp"
#include "checkpoint/metrics.hpp"
#include "checkpoint/perform.hpp"
#include "checkpoint/planned_box.hpp"
#include "io/staging_pool.hpp"
#include "large_memory.hpp"

namespace safering::checkpoint {

Result<std::shared_ptr<WriteJob>> WriteJob::make(Reactor& reactor, const SavePlan& plan,
                                                 SavePlanner& planner, WriteJobOptions options) {
    if (!plan.storage || plan.storage->placements.size() != plan.items.size())
        return safering::fail(Errc::plan_not_prepared, "write data",
                              "the plan has no layout: pass it through prepare_global_plan first");
    if (plan.storage->chunk_bytes < block_bytes || !std::has_single_bit(plan.storage->chunk_bytes))
        return safering::fail(Errc::plan_bad_bytes, "write data",
                              "chunk_bytes is not a power of two of at least 4096");
    if (auto made = make_buffers(reactor); !made)
        return std::unexpected(std::move(made.error()));
    if (plan.storage->chunk_bytes > reactor.info().buffer_bytes)
        return safering::fail(
            Errc::plan_not_prepared, "write data",
            fmt::format(
                "the plan's chunks of {} bytes do not fit this rank's buffers of {}; give every "
                "rank's reactor the same buffer_bytes",
                plan.storage->chunk_bytes, reactor.info().buffer_bytes));
    std::shared_ptr<WriteJob> job(new WriteJob(reactor, *plan.storage, std::move(options)));
    const auto planning = job->meter_.plan();
    if (auto added = job->add_items(plan, planner); !added)
        return std::unexpected(std::move(added.error()));
    // What the other ranks give is known only when all have begun.
    if (auto ready = plan.storage->exchange ? job->join_exchange(plan) : job->plan_files(); !ready)
        return std::unexpected(std::move(ready.error()));
    return job;
}

WriteJob::WriteJob(Reactor& reactor, const StoragePlan& storage, WriteJobOptions options)
    : CellPipeline(reactor, Opcode::write, std::move(options.progress), std::move(options.stop)),
      directory_(storage.directory), chunk_bytes_(storage.chunk_bytes), digests_(options.digests),
      planned_(storage.files), spans_(storage.files.size()), throttle_(std::move(options.throttle)),
      on_work_(std::move(options.on_work)) {
    if (storage.exchange)
        cells_ = storage.exchange->cells;
}

// Its own bytes in its file, checked.
Result<void> WriteJob::add_item(const SavePlan& plan, std::size_t index, TensorView source) {
    const WriteItem& item = plan.items[index];
    const ItemPlacement& placement = plan.storage->placements[index];
    if (auto checked = check_source(plan.rank, item, source); !checked)
        return std::unexpected(std::move(checked.error()));
    if (placement.file >= planned_.size())
        return safering::fail(Errc::plan_bad_bytes, "write data", "placement names no file");
    const StoredBox stored = stored_box(plan, item);
    auto copy = plan::BoxCopy::make(item.dtype, stored.stored, stored.offsets, item.chunk.sizes,
                                    source.strides);
    if (!copy) {
        copy.error().tensor = item.fqn;
        return std::unexpected(std::move(copy.error()));
    }
    const plan::FileBox& box = copy->file_box();
    auto length = byte_size(item.dtype, stored.stored);
    if (!length)
        return std::unexpected(std::move(length.error()));
    const PlannedFile& file = planned_[placement.file];
    const ByteRange hull = box.hull().shifted(placement.tensor_begin);
    if (hull.end > file.file_bytes || placement.tensor_begin < file.data_begin)
        return safering::fail(
            Errc::plan_out_of_bounds, "write data",
            fmt::format("item of \"{}\" lies outside {}", escaped(item.fqn), file.name));
    results_.items.push_back({.index = item.index(),
                              .size_in_bytes = box.bytes(),
                              .storage = {placement.file, placement.tensor_begin, *length},
                              .digests = Digests(digests_ ? cell_count(hull, chunk_bytes_) : 0)});
    hand_over(placement.file, hull, {hull, static_cast<std::uint32_t>(index), !box.contiguous()},
              results_.items.back());
    items_.push_back({std::move(*copy), source.data, std::move(source.owner),
                      placement.tensor_begin, hull.begin / chunk_bytes_});
    return {};
}

// Keeps of the span what lies outside of other ranks' cells.
void WriteJob::hand_over(std::uint32_t file, ByteRange hull, const plan::FileSpan& span,
                         WriteResult& result) {
    std::uint64_t at = hull.begin;
    const auto keep = [&](std::uint64_t end) {
        if (at < end)
            spans_[file].push_back({{at, end}, span.item, span.strided});
    };
    auto cells = std::ranges::partition_point(cells_, [&](const ExchangedCells& candidate) {
        return std::pair(candidate.file, candidate.last_cell * chunk_bytes_) <=
               std::pair(file, hull.begin);
    });
    for (; cells != cells_.end() && cells->file == file &&
           cells->first_cell * chunk_bytes_ < hull.end;
         ++cells) {
        if (cells->owner == results_.rank || hull.empty())
            continue;
        const ByteRange given =
            hull.clip({cells->first_cell * chunk_bytes_, cells->last_cell * chunk_bytes_});
        keep(given.begin);
        at = given.end;
        result.handed_over += static_cast<std::uint32_t>(cell_count(given, chunk_bytes_));
    }
    keep(hull.end);
}

Result<void> WriteJob::add_items(const SavePlan& plan, SavePlanner& planner) {
    ReactorInfo info = reactor_.info();
    results_ = {.rank = plan.rank,
                .attempt = plan.storage->attempt,
                .backend = info.backend,
                .reason = std::move(info.reason)};
    for (const PlannedFile& file : planned_)
        results_.files.push_back(file.name);
    reserve_large(items_, plan.items.size());
    reserve_large(results_.items, plan.items.size());
    for (std::size_t i = 0; i < plan.items.size(); ++i) {
        auto source = planner.resolve_data(plan.items[i]);
        if (!source)
            return std::unexpected(std::move(source.error()));
        if (auto added = add_item(plan, i, std::move(*source)); !added)
            return added;
    }
    return {};
}

Result<void> WriteJob::plan_files() {
    for (std::size_t f = 0; f < spans_.size(); ++f) {
        auto requests = plan::RequestPlanner(chunk_bytes_).plan_writes(std::move(spans_[f]));
        if (!requests) {
            requests.error().file = planned_[f].name;
            return std::unexpected(std::move(requests.error()));
        }
        if (requests->requests.empty())
            continue;
        files_.push_back({.path = join(directory_, planned_[f].name),
                          .file_bytes = planned_[f].file_bytes,
                          .plan = std::move(*requests)});
    }
    spans_ = {};
    return {};
}

void WriteJob::start(Handler handler) {
    (void)had_memory([&] { interval_.begin(fmt::format("write_data of rank {}", results_.rank)); });
    handler_ = std::move(handler);
    boost::asio::post(
        reactor_.executor(),
        in_memory(start_memory_, [self = std::static_pointer_cast<WriteJob>(shared_from_this())] {
            if (self->exchange_)
                self->try_step([&] { self->begin_exchange(); });
            else
                self->open_files();
        }));
}

Result<WriteResults> WriteJob::run() {
    SAFERING_ASSERT(!reactor_.running_in_this_thread());
    std::promise<Result<WriteResults>> ended;
    start([&ended](Result<WriteResults> result) { ended.set_value(std::move(result)); });
    return ended.get_future().get();
}

void WriteJob::open_files() {
    const auto explain = [this](Error& error) {
        if (error.code == std::errc::too_many_files_open)
            error.detail = too_many_files_hint;
        if (is_absent(error))
            error =
                Error{.code = Errc::checkpoint_not_visible,
                      .operation = "write data",
                      .file = directory_,
                      .detail = "the coordinator made this directory, this rank does not see it: "
                                "all ranks must reach one file system under the same path (or the "
                                "save was aborted meanwhile)"};
    };
    const auto open = [&](const Request& request, int& descriptor) {
        submit_other(
            request, request.path,
            [this, &descriptor](const Completion& completion) {
                if (!completion.error)
                    descriptor = static_cast<int>(completion.result);
                end_opening();
            },
            explain);
        ++opening_;
    };
    opening_ = 1; // this function
    try_step([&] {
        for (File& file : files_) {
            Request request{.op = Opcode::open, .mode = OpenMode::update, .path = file.path};
            open(request, file.buffered);
            request.caching = Caching::direct;
            open(request, file.direct);
        }
    });
    end_opening();
}

void WriteJob::end_opening() {
    if (--opening_ == 0)
        start_cells();
}

const plan::FileBox& WriteJob::box_of(std::uint32_t item) const {
    return is_foreign(item) ? exchange_->box_of(item - static_cast<std::uint32_t>(items_.size()))
                            : items_[item].copy.file_box();
}

std::uint64_t WriteJob::tensor_begin_of(std::uint32_t item) const {
    return is_foreign(item) ? foreign_[item - items_.size()].tensor_begin
                            : items_[item].tensor_begin;
}

std::chrono::nanoseconds WriteJob::pause() {
    if (!throttle_ || !throttle_->limited())
        return {};
    timespec ran{};
    (void)::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ran); // fails for no clock that exists
    return throttle_->wait(std::chrono::steady_clock::now().time_since_epoch(),
                           std::chrono::seconds(ran.tv_sec) +
                               std::chrono::nanoseconds(ran.tv_nsec));
}

std::uint64_t& WriteJob::digest_place(const plan::Segment& segment) {
    return results_.items[segment.item]
        .digests[segment.range.begin / chunk_bytes_ - items_[segment.item].first_cell];
}

// Where the cell lies in staging memory as it does in the file, it is written from there.
bool WriteJob::load_staged(Cell& cell) {
    if (cell.request->gaps)
        return false;
    const std::byte* image = nullptr;
    const auto segments = files_[cell.file].plan.segments_of(*cell.request);
    for (const plan::Segment& segment : segments) {
        if (is_foreign(segment.item) || !items_[segment.item].copy.memory_contiguous())
            return false;
        const Item& item = items_[segment.item];
        const std::uint64_t begin = item.tensor_begin + item.copy.file_box().hull().begin;
        const std::byte* lies = item.source + (segment.range.begin - begin);
        if (image == nullptr)
            image = lies - (segment.range.begin - cell.image_begin);
        if (lies != image + (segment.range.begin - cell.image_begin))
            return false;
    }
    const ByteRange range = cell.request->range;
    const std::byte* first = image + (range.begin - cell.image_begin);
    if (reinterpret_cast<std::uintptr_t>(image) % block_bytes != 0 ||
        !io::StagingPool::of_process().holds(first, range.size()))
        return false;
    cell.image = const_cast<std::byte*>(image); // a write reads it only
    cell.whole = true;
    if (digests_)
        for (const plan::Segment& segment : segments)
            digest_place(segment) =
                plan::digest_of({image + (segment.range.begin - cell.image_begin),
                                 static_cast<std::size_t>(segment.range.size())});
    return true;
}

Result<CellPipeline::Loaded> WriteJob::load(const std::shared_ptr<Cell>& loading) {
    Cell& cell = *loading;
    const trace::Span span("copy in", cell.request->range.size());
    const auto copying = meter_.copy();
    cell.image_begin = round_down(cell.request->range.begin, block_bytes);
    if (throttle_)
        throttle_->add_bytes(cell.request->range.size());
    const bool staged = load_staged(cell);
    meter_.add_cell(!staged);
    if (digests_)
        meter_.add_digests(files_[cell.file].plan.segments_of(*cell.request).size());
    if (staged) {
        end_loading(cell);
        return Loaded::now;
    }
    plan::Digest digest;
    std::vector<WriteExchange::Wanted> wanted;
    std::uint64_t bytes = 0;
    for (const plan::Segment& segment : files_[cell.file].plan.segments_of(*cell.request)) {
        bytes += bytes_of(segment);
        if (is_foreign(segment.item)) {
            auto taken = take(cell, segment);
            if (!taken)
                return std::unexpected(std::move(taken.error()));
            if (!*taken)
                wanted.push_back(
                    {segment.item - static_cast<std::uint32_t>(items_.size()), segment.range});
            continue;
        }
        const Item& item = items_[segment.item];
        std::byte* image = cell.buffer.data() + (segment.range.begin - cell.image_begin);
        const ByteRange window{segment.range.begin - item.tensor_begin,
                               segment.range.end - item.tensor_begin};
        if (digests_)
            digest_place(segment) = item.copy.gather_digested(item.source, image, window, digest);
        else
            item.copy.gather(item.source, image, window);
    }
    cell.whole = bytes == cell.request->range.size();
    if (wanted.empty()) {
        end_loading(cell);
        return Loaded::now;
    }
    exchange_->fetch(round_down(cell.request->range.begin, chunk_bytes_), wanted,
                     [this, loading, wanted](const std::byte* slot) {
                         copy_fetched(*loading, wanted, slot);
                         end_loading(*loading);
                         std::erase(fetching_, loading); // what throws before is on_fail's to end
                         finish_loading(loading);
                     });
    fetching_.push_back(loading);
    return Loaded::later;
}

std::uint64_t WriteJob::bytes_of(const plan::Segment& segment) const {
    if (!segment.strided)
        return segment.range.size();
    const std::uint64_t begin = tensor_begin_of(segment.item);
    const plan::FileBox& box = box_of(segment.item);
    return box.bytes_before(segment.range.end - begin) -
           box.bytes_before(segment.range.begin - begin);
}

void WriteJob::end_loading(Cell& cell) {
    cell.transfers = plan::write_transfers(runs_of(cell), block_bytes, plan::direct_run_bytes);
    if (cells_to_take_ == 0)
        return;
    const bool takes =
        std::ranges::any_of(files_[cell.file].plan.segments_of(*cell.request),
                            [&](const plan::Segment& segment) { return is_foreign(segment.item); });
    if (takes && --cells_to_take_ == 0)
        exchange_->finish_taking();
}

Result<CellPipeline::Unloaded> WriteJob::unload(const std::shared_ptr<Cell>&) {
    return Unloaded::now;
}

void WriteJob::on_file_done(std::size_t index) {
    const File& file = files_[index];
    if (file.direct_used)
        submit_other({.op = Opcode::fsync, .file = file.direct}, file.path);
    if (file.buffered_used)
        submit_other({.op = Opcode::fsync, .file = file.buffered}, file.path);
}

void WriteJob::on_idle() {
    if (!closing_)
        close_files();
    else if (!delivered_)
        deliver();
}

void WriteJob::close_files() {
    closing_ = true;
    bool any = false;
    for (const File& file : files_)
        for (const int descriptor : {file.direct, file.buffered}) {
            if (descriptor < 0)
                continue;
            const bool submitted = try_step(
                [&] { submit_other({.op = Opcode::close, .file = descriptor}, file.path); });
            if (!submitted)
                reactor_.close(descriptor);
            any = any || submitted;
        }
    if (!any)
        deliver();
}

void WriteJob::deliver() {
    delivered_ = true;
    if (exchange_) {
        results_.exchange = exchange_->take_report();
        exchange_->end();
    }
    items_.clear(); // the owners' memory is free before the caller hears of it
    interval_.end();
    results_.work = meter_.report();
    const WorkReport work = results_.work;
    metrics::add_write(work, error_ ? metrics::Outcome::failed : metrics::Outcome::good);
    if (on_work_)
        on_work_(work);
    Handler handler = std::move(handler_);
    if (error_) {
        (void)had_memory([&] { error_->operation += fmt::format(" of rank {}", results_.rank); });
        handler(std::unexpected(std::move(*error_)));
        return;
    }
    handler(std::move(results_));
}

} // namespace safering::checkpoint
