#include "checkpoint/write_job.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <future>

#include <boost/asio/post.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "checkpoint/attempt.hpp"
#include "checkpoint/manifest.hpp"
#include "checkpoint/perform.hpp"
#include "checkpoint/planned_box.hpp"

namespace safering::checkpoint {

namespace {

Result<void> check_source(const SavePlan& plan, std::size_t item, const TensorView& source) {
    const WriteItem& planned = plan.items[item];
    const auto bad = [&](std::string detail) {
        Error error{.code = Errc::plan_shape_mismatch,
                    .operation = fmt::format("write data of rank {}", plan.rank),
                    .tensor = planned.fqn,
                    .detail = std::move(detail)};
        return std::unexpected(std::move(error));
    };
    if (source.dtype != planned.dtype)
        return bad(
            fmt::format("planned as {}, the data is {}", name(planned.dtype), name(source.dtype)));
    if (source.shape != planned.chunk.sizes)
        return bad(fmt::format("planned as [{}], the data is [{}]",
                               fmt::join(planned.chunk.sizes, ","), fmt::join(source.shape, ",")));
    if (!source.strides.empty() && source.strides.size() != source.shape.size())
        return bad("strides and shape differ in rank");
    if (source.data == nullptr && std::ranges::find(source.shape, 0u) == source.shape.end())
        return bad("the data is a null pointer");
    return {};
}

} // namespace

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
    if (auto added = job->add_items(plan, planner); !added)
        return std::unexpected(std::move(added.error()));
    // What the other ranks give is known only when all have begun.
    if (auto ready = plan.storage->exchange ? job->join_exchange(plan) : job->plan_files(); !ready)
        return std::unexpected(std::move(ready.error()));
    return job;
}

WriteJob::WriteJob(Reactor& reactor, const StoragePlan& storage, WriteJobOptions options)
    : CellPipeline(reactor, Opcode::write, std::move(options.progress), options.stop),
      directory_(storage.directory), chunk_bytes_(storage.chunk_bytes), digests_(options.digests),
      planned_(storage.files), spans_(storage.files.size()), stop_(std::move(options.stop)) {
    if (storage.exchange)
        cells_ = storage.exchange->cells;
}

// Its own bytes in its file, checked.
Result<void> WriteJob::add_item(const SavePlan& plan, std::size_t index, TensorView source) {
    const WriteItem& item = plan.items[index];
    const ItemPlacement& placement = plan.storage->placements[index];
    if (auto checked = check_source(plan, index, source); !checked)
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
    results_ = {.rank = plan.rank, .attempt = plan.storage->attempt};
    for (const PlannedFile& file : planned_)
        results_.files.push_back(file.name);
    items_.reserve(plan.items.size());
    results_.items.reserve(plan.items.size());
    for (std::size_t i = 0; i < plan.items.size(); ++i) {
        auto source = planner.resolve_data(plan.items[i]);
        if (!source)
            return std::unexpected(std::move(source.error()));
        if (auto added = add_item(plan, i, std::move(*source)); !added)
            return added;
    }
    return {};
}

Result<void> WriteJob::join_exchange(const SavePlan& plan) {
    const ExchangePlan& exchange = *plan.storage->exchange;
    for (std::size_t i = 0; i < exchange.positions.size(); ++i) {
        if (exchange.positions[i] >= place_of_.size())
            place_of_.resize(std::size_t{exchange.positions[i]} + 1, not_here);
        place_of_[exchange.positions[i]] = static_cast<std::uint32_t>(i);
    }
    auto made = WriteExchange::make(reactor_, plan);
    if (!made)
        return std::unexpected(std::move(made.error()));
    exchange_ = std::move(*made);
    exchanging_ = true;
    giving_ = !exchange.takers.empty();
    for (std::size_t f = 0; f < exchange.items.size(); ++f) {
        const ForeignItem& item = exchange.items[f];
        const ByteRange hull = exchange_->box_of(static_cast<std::uint32_t>(f))
                                   .hull()
                                   .shifted(item.placement.tensor_begin);
        if (item.placement.file >= planned_.size() ||
            hull.end > planned_[item.placement.file].file_bytes)
            return safering::fail(
                Errc::plan_bad_bytes, "write data",
                fmt::format("item {} of rank {} lies outside of its file", item.item, item.rank));
        foreign_.push_back(
            {item.rank, item.item, item.placement.tensor_begin, hull.begin / chunk_bytes_});
    }
    return {};
}

// Of each item that its source gives, what lies in this rank's cells.
void WriteJob::add_foreign(const ExchangePlan& exchange) {
    for (std::uint32_t f = 0; f < foreign_.size(); ++f) {
        if (exchange_->kept(f))
            continue;
        const plan::FileBox& box = exchange_->box_of(f);
        const ByteRange hull = box.hull().shifted(foreign_[f].tensor_begin);
        const auto item = static_cast<std::uint32_t>(items_.size()) + f;
        for (const ExchangedCells& cells : cells_) {
            const ByteRange owned =
                hull.clip({cells.first_cell * chunk_bytes_, cells.last_cell * chunk_bytes_});
            if (cells.owner == results_.rank && cells.file == exchange.items[f].placement.file &&
                !owned.empty())
                spans_[cells.file].push_back({owned, item, !box.contiguous()});
        }
    }
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
    handler_ = std::move(handler);
    boost::asio::post(reactor_.executor(),
                      [self = std::static_pointer_cast<WriteJob>(shared_from_this())] {
                          if (self->exchange_)
                              self->begin_exchange();
                          else
                              self->open_files();
                      });
}

// Its handlers are posted, so that none ends the exchange inside.
void WriteJob::begin_exchange() {
    const auto self = std::static_pointer_cast<WriteJob>(shared_from_this());
    const auto later = [self](auto&& what) {
        boost::asio::post(self->reactor_.executor(), std::forward<decltype(what)>(what));
    };
    if (giving_)
        hold();
    on_stop_.emplace(stop_, [self, later] {
        later([self] {
            self->fail({.code = std::make_error_code(std::errc::operation_canceled),
                        .operation = "write data"});
        });
    });
    exchange_->begin({.source_of = [self](std::uint32_t item) { return self->source_of(item); },
                      .on_ready = [self, later] { later([self] { self->on_exchange_ready(); }); },
                      .on_released =
                          [self, later] {
                              later([self] {
                                  if (std::exchange(self->giving_, false))
                                      self->release();
                              });
                          },
                      .on_failed =
                          [self, later](Error error) {
                              later([self, error = std::move(error)] { self->fail(error); });
                          }});
}

void WriteJob::on_exchange_ready() {
    if (!std::exchange(exchanging_, false))
        return;
    add_foreign(exchange_->plan());
    if (auto planned = plan_files(); !planned) {
        exchanging_ = true; // nothing has begun
        return fail(std::move(planned.error()));
    }
    for (const File& file : files_)
        for (const plan::CellRequest& request : file.plan.requests)
            cells_to_take_ += std::ranges::any_of(
                file.plan.segments_of(request),
                [&](const plan::Segment& segment) { return is_foreign(segment.item); });
    if (cells_to_take_ == 0)
        exchange_->finish_taking();
    open_files();
}

std::optional<WriteExchange::Source> WriteJob::source_of(std::uint32_t whole) const {
    const std::uint32_t place = place_of_.empty()          ? whole
                                : whole < place_of_.size() ? place_of_[whole]
                                                           : not_here;
    if (place >= items_.size())
        return std::nullopt;
    const Item& item = items_[place];
    return WriteExchange::Source{&item.copy, item.source, item.tensor_begin};
}

// Other ranks are told; what waits for them ends.
void WriteJob::on_fail(const Error& error) {
    if (!exchange_)
        return;
    exchange_->give_up(error.message());
    for (const auto& cell : std::exchange(fetching_, {}))
        finish_loading(cell);
    boost::asio::post(reactor_.executor(),
                      [self = std::static_pointer_cast<WriteJob>(shared_from_this())] {
                          if (std::exchange(self->giving_, false))
                              self->release();
                          if (std::exchange(self->exchanging_, false))
                              self->start_cells();
                      });
}

Result<WriteResults> WriteJob::run() {
    SAFERING_ASSERT(!reactor_.running_in_this_thread());
    std::promise<Result<WriteResults>> ended;
    start([&ended](Result<WriteResults> result) { ended.set_value(std::move(result)); });
    return ended.get_future().get();
}

void WriteJob::open_files() {
    if (files_.empty()) {
        start_cells();
        return;
    }
    auto left = std::make_shared<std::size_t>(2 * files_.size());
    const auto opened = [this, left](int& file, const Completion& completion) {
        if (!completion.error)
            file = static_cast<int>(completion.result);
        if (--*left == 0)
            start_cells();
    };
    const auto explain = [this](Error& error) {
        if (error.code == std::errc::too_many_files_open)
            error.detail = too_many_files_hint;
        if (error.code == std::errc::no_such_file_or_directory)
            error =
                Error{.code = Errc::checkpoint_not_visible,
                      .operation = "write data",
                      .file = directory_,
                      .detail = "the coordinator made this directory, this rank does not see it: "
                                "all ranks must reach one file system under the same path (or the "
                                "save was aborted meanwhile)"};
    };
    for (File& file : files_) {
        Request request{.op = Opcode::open, .mode = OpenMode::update, .path = file.path};
        const auto submit = [&](int& descriptor) {
            submit_other(
                request, file.path,
                [&descriptor, opened](const Completion& completion) {
                    opened(descriptor, completion);
                },
                explain);
        };
        submit(file.buffered);
        request.caching = Caching::direct;
        submit(file.direct);
    }
}

const plan::FileBox& WriteJob::box_of(std::uint32_t item) const {
    return is_foreign(item) ? exchange_->box_of(item - static_cast<std::uint32_t>(items_.size()))
                            : items_[item].copy.file_box();
}

std::uint64_t WriteJob::tensor_begin_of(std::uint32_t item) const {
    return is_foreign(item) ? foreign_[item - items_.size()].tensor_begin
                            : items_[item].tensor_begin;
}

Result<CellPipeline::Loaded> WriteJob::load(const std::shared_ptr<Cell>& loading) {
    Cell& cell = *loading;
    cell.image_begin = round_down(cell.request->range.begin, block_bytes);
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
        digest.reset();
        item.copy.gather(
            item.source, cell.buffer.data() + (segment.range.begin - cell.image_begin),
            {segment.range.begin - item.tensor_begin, segment.range.end - item.tensor_begin},
            digests_ ? &digest : nullptr);
        if (digests_)
            results_.items[segment.item]
                .digests[segment.range.begin / chunk_bytes_ - item.first_cell] = digest.value();
    }
    cell.whole = bytes == cell.request->range.size();
    if (wanted.empty()) {
        end_loading(cell);
        return Loaded::now;
    }
    fetching_.push_back(loading);
    exchange_->fetch(round_down(cell.request->range.begin, chunk_bytes_), wanted,
                     [this, loading, wanted](const std::byte* slot) {
                         copy_fetched(*loading, wanted, slot);
                         std::erase(fetching_, loading);
                         end_loading(*loading);
                         finish_loading(loading);
                     });
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

// Whether another rank's bytes are in the image now.
Result<bool> WriteJob::take(Cell& cell, const plan::Segment& segment) {
    std::byte* image = cell.buffer.data() + (segment.range.begin - cell.image_begin);
    auto taken = exchange_->take(
        {segment.item - static_cast<std::uint32_t>(items_.size()), segment.range}, image);
    if (taken && *taken)
        add_piece(segment, image);
    return taken;
}

// `image` holds the segment's range.
void WriteJob::add_piece(const plan::Segment& segment, const std::byte* image) {
    const Foreign& item = foreign_[segment.item - items_.size()];
    const ByteRange window{segment.range.begin - item.tensor_begin,
                           segment.range.end - item.tensor_begin};
    results_.pieces.push_back(
        {item.rank, item.item,
         static_cast<std::uint32_t>(segment.range.begin / chunk_bytes_ - item.first_cell),
         digests_ ? plan::digest_of_image(box_of(segment.item), image, window) : 0});
}

// `slot` is an image of the whole cell.
void WriteJob::copy_fetched(Cell& cell, const std::vector<WriteExchange::Wanted>& wanted,
                            const std::byte* slot) {
    const std::uint64_t cell_begin = round_down(cell.request->range.begin, chunk_bytes_);
    for (const WriteExchange::Wanted& want : wanted) {
        const plan::Segment segment{want.window,
                                    static_cast<std::uint32_t>(items_.size()) + want.foreign,
                                    !exchange_->box_of(want.foreign).contiguous()};
        const std::uint64_t begin = foreign_[want.foreign].tensor_begin;
        box_of(segment.item)
            .for_each_run({want.window.begin - begin, want.window.end - begin}, [&](ByteRange run) {
                const std::uint64_t at = run.begin + begin;
                std::memcpy(cell.buffer.data() + (at - cell.image_begin), slot + (at - cell_begin),
                            run.size());
            });
        add_piece(segment, cell.buffer.data() + (want.window.begin - cell.image_begin));
    }
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
        for (const int descriptor : {file.direct, file.buffered})
            if (descriptor >= 0) {
                submit_other({.op = Opcode::close, .file = descriptor}, file.path);
                any = true;
            }
    if (!any)
        deliver();
}

void WriteJob::deliver() {
    delivered_ = true;
    on_stop_.reset();
    if (exchange_) {
        results_.exchange = exchange_->report();
        exchange_->end();
    }
    items_.clear(); // the owners' memory is free before the caller hears of it
    Handler handler = std::move(handler_);
    if (error_) {
        error_->operation += fmt::format(" of rank {}", results_.rank);
        handler(std::unexpected(std::move(*error_)));
        return;
    }
    handler(std::move(results_));
}

} // namespace safering::checkpoint
