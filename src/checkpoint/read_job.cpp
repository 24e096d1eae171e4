#include "checkpoint/read_job.hpp"

#include <algorithm>
#include <utility>

#include <boost/asio/post.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "checkpoint/extents.hpp"
#include "checkpoint/load_offer.hpp"
#include "checkpoint/metrics.hpp"
#include "io/touch_ahead.hpp"
#include "large_memory.hpp"
#include "out_of_memory.hpp"
#include "plan/tensor_finder.hpp"

namespace safering::checkpoint {

ReadJob::ReadJob(Reactor& reactor, const StoredCheckpoint& checkpoint, ReadJobOptions options)
    : CellPipeline(reactor, Opcode::read, std::move(options.progress), std::move(options.stop)),
      checkpoint_(checkpoint), options_(std::move(options)) {}

// A digest covers one cell of the save, so that a load that checks must work in the same cells.
Result<void> ReadJob::choose_chunk() {
    if (auto made = make_buffers(reactor_); !made)
        return made;
    auto chunk = read_chunk_bytes(checkpoint_, options_.verification, reactor_.info().buffer_bytes);
    if (!chunk)
        return std::unexpected(std::move(chunk.error()));
    chunk_bytes_ = *chunk;
    if (!checkpoint_.digests)
        options_.verification = Verification::off;
    return {};
}

Result<std::shared_ptr<ReadJob>> ReadJob::make(Reactor& reactor, const StoredCheckpoint& checkpoint,
                                               const LoadPlan& plan, LoadPlanner& planner,
                                               ReadJobOptions options) {
    std::shared_ptr<ReadJob> job(new ReadJob(reactor, checkpoint, std::move(options)));
    const auto planning = job->meter_.plan();
    if (auto chosen = job->choose_chunk(); !chosen)
        return std::unexpected(std::move(chosen.error()));
    if (auto added = job->add_items(plan, planner); !added)
        return std::unexpected(std::move(added.error()));
    if (plan.exchange && job->options_.exchange)
        if (auto joined = job->join_exchange(*plan.exchange); !joined)
            return std::unexpected(std::move(joined.error()));
    return job;
}

Result<std::shared_ptr<ReadJob>> ReadJob::make_scan(Reactor& reactor,
                                                    const StoredCheckpoint& checkpoint,
                                                    std::size_t file, ReadJobOptions options) {
    std::shared_ptr<ReadJob> job(new ReadJob(reactor, checkpoint, std::move(options)));
    if (auto chosen = job->choose_chunk(); !chosen)
        return std::unexpected(std::move(chosen.error()));
    const StoredFile& scanned = checkpoint.files[file];
    std::vector<std::vector<plan::FileSpan>> spans(checkpoint.files.size());
    spans[file].push_back({{scanned.header.data_begin, scanned.file_bytes()}, 0, false});
    job->plan_files(std::move(spans));
    return job;
}

Result<void> ReadJob::add_item(const ReadItem& read, const TensorStorageMetadata& tensor,
                               MutableTensorView destination) {
    const auto bad = [&](Errc code, std::string detail) {
        return std::unexpected(Error{.code = code,
                                     .operation = "read data",
                                     .file = checkpoint_.path,
                                     .tensor = std::string(read.fqn),
                                     .detail = std::move(detail)});
    };
    if (read.chunk >= tensor.chunks.size())
        return bad(Errc::plan_out_of_bounds,
                   fmt::format("chunk {} of {}", read.chunk, tensor.chunks.size()));
    if (destination.dtype != tensor.dtype || destination.shape != read.lengths)
        return bad(Errc::plan_shape_mismatch,
                   fmt::format("the plan reads {} [{}], the destination is {} [{}]",
                               name(tensor.dtype), fmt::join(read.lengths, ","),
                               name(destination.dtype), fmt::join(destination.shape, ",")));
    if (destination.data == nullptr && std::ranges::find(read.lengths, 0u) == read.lengths.end())
        return bad(Errc::plan_shape_mismatch, "the destination is a null pointer");
    auto copy = plan::BoxCopy::make(tensor.dtype, tensor.chunks[read.chunk].sizes,
                                    read.storage_offsets, read.lengths, destination.strides);
    if (!copy) {
        copy.error().tensor = read.fqn;
        return std::unexpected(std::move(copy.error()));
    }
    report_.tensor_bytes += copy->file_box().bytes();
    items_.push_back({std::move(*copy), destination.data, std::move(destination.owner),
                      tensor.storage[read.chunk].offset});
    return {};
}

// Anything that the plan needs and the files do not hold is an error before the first byte is read.
Result<void> ReadJob::add_items(const LoadPlan& plan, LoadPlanner& planner) {
    std::vector<std::vector<plan::FileSpan>> spans(checkpoint_.files.size());
    plan::TensorFinder tensors(checkpoint_.metadata.tensors);
    reserve_large(items_, plan.items.size());
    for (const ReadItem& read : plan.items) {
        auto destination = planner.resolve_tensor(read);
        if (!destination)
            return std::unexpected(std::move(destination.error()));
        const TensorStorageMetadata* tensor = tensors.find(read.fqn);
        if (tensor == nullptr)
            return std::unexpected(Error{.code = Errc::checkpoint_tensor_missing,
                                         .operation = "read data",
                                         .file = checkpoint_.path,
                                         .tensor = std::string(read.fqn)});
        if (auto added = add_item(read, *tensor, std::move(*destination)); !added)
            return added;
        const Item& item = items_.back();
        const plan::FileBox& box = item.copy.file_box();
        spans[tensor->storage[read.chunk].file].push_back(
            {box.hull().shifted(item.chunk_begin), static_cast<std::uint32_t>(items_.size() - 1),
             !box.contiguous()});
    }
    plan_files(std::move(spans));
    return {};
}

void ReadJob::plan_files(std::vector<std::vector<plan::FileSpan>> spans) {
    for (std::uint32_t f = 0; f < spans.size(); ++f) {
        auto requests = plan::RequestPlanner(chunk_bytes_).plan_reads(std::move(spans[f]));
        if (!requests.requests.empty())
            add_file(f, std::move(requests));
    }
}

void ReadJob::add_file(std::uint32_t stored, plan::RequestPlan requests) {
    const StoredFile& file = checkpoint_.files[stored];
    stored_.push_back(stored);
    files_.push_back({.path = file.path,
                      .direct = file.file.descriptor(),
                      .buffered = file.file.descriptor(),
                      .file_bytes = file.file_bytes(),
                      .plan = std::move(requests)});
}

void ReadJob::start(Handler handler) {
    interval_.begin("read_data");
    handler_ = std::move(handler);
    (void)had_memory([&] { touch_destinations(); });
    boost::asio::post(
        reactor_.executor(),
        in_memory(start_memory_, [self = std::static_pointer_cast<ReadJob>(shared_from_this())] {
            if (self->exchange_)
                self->try_step([&] { self->begin_exchange(); });
            else
                self->start_cells();
        }));
}

// Those of a state that a trainer has at hand have been touched; a new one's have not.
void ReadJob::touch_destinations() {
    std::vector<std::span<std::byte>> memory;
    for (const Item& item : items_) {
        const std::uint64_t bytes = item.copy.file_box().bytes();
        if (bytes >= io::least_touched_bytes && item.copy.memory_dense()) // no list of a million
            memory.emplace_back(item.destination, bytes);
    }
    touching_ = io::touch_ahead(std::move(memory));
}

Result<LoadReport> ReadJob::run() {
    SAFERING_ASSERT(!reactor_.running_in_this_thread());
    auto ended = ended_.get_future();
    start([this](Result<LoadReport> result) { ended_.set_value(std::move(result)); });
    return ended.get();
}

const plan::FileBox& ReadJob::box_of(std::uint32_t item) const {
    return items_[item].copy.file_box();
}

std::uint64_t ReadJob::tensor_begin_of(std::uint32_t item) const {
    return items_[item].chunk_begin;
}

Result<CellPipeline::Loaded> ReadJob::load(const std::shared_ptr<Cell>& loading) {
    Cell& cell = *loading;
    std::vector<ByteRange> runs = runs_of(cell, read_slack_bytes);
    if (const CellName name = name_of(cell.file, *cell.request); is_given(name))
        std::ranges::copy(exchange_->reads_of(name), std::back_inserter(runs));
    runs = read_runs(stored(cell), std::move(runs), cell.request->range, options_.verification,
                     chunk_bytes_);
    cell.transfers = plan::read_transfers(runs, block_bytes, read_gap_bytes);
    if (!cell.transfers.empty())
        cell.image_begin = cell.transfers.front().range.begin;
    for (const plan::Transfer& transfer : cell.transfers)
        report_.read_bytes +=
            std::min(transfer.range.end, files_[cell.file].file_bytes) - transfer.range.begin;
    return Loaded::now;
}

Result<void> ReadJob::verify(const Cell& cell) {
    const auto verifying = meter_.verify();
    const StoredFile& file = stored(cell);
    for (const plan::Transfer& transfer : cell.transfers) {
        for (const DigestPiece& piece : pieces_in(file, transfer.range, chunk_bytes_)) {
            if (!transfer.range.contains(piece.range))
                continue;
            report_.verified_bytes += bytes_of(file, piece);
            meter_.add_digests(1);
            if (matches(file, piece, cell.buffer.data(), cell.image_begin))
                continue;
            Error error{.code = Errc::checkpoint_digest_mismatch,
                        .operation = "verify",
                        .file = file.path,
                        .tensor = file.header.tensors[piece.tensor].name.str(),
                        .offset = piece.range.begin,
                        .length = piece.range.size(),
                        .detail = "restore the file from a copy"};
            metrics::add_mismatch();
            if (!options_.on_mismatch)
                return std::unexpected(std::move(error));
            options_.on_mismatch(std::move(error));
        }
    }
    return {};
}

Result<CellPipeline::Unloaded> ReadJob::unload(const std::shared_ptr<Cell>& unloading) {
    Cell& cell = *unloading;
    const trace::Span span("copy out", cell.request->range.size());
    if (options_.verification != Verification::off)
        if (auto verified = verify(cell); !verified)
            return std::unexpected(std::move(verified.error()));
    const CellName name = name_of(cell.file, *cell.request);
    if (!is_given(name)) {
        copy_out(cell);
        return Unloaded::now;
    }
    given_.push_back(unloading); // from here on it ends as one of these
    try_step([&] {
        give(name, unloading); // first, so that others copy while this rank does
        copy_out(cell);
    });
    return Unloaded::later;
}

void ReadJob::copy_out(const Cell& cell) {
    const auto copying = meter_.copy();
    meter_.add_cell(!items_.empty());
    if (!items_.empty())
        for (const plan::Segment& segment : files_[cell.file].plan.segments_of(*cell.request)) {
            const Item& item = items_[segment.item];
            item.copy.scatter(
                cell.buffer.data() + (segment.range.begin - cell.image_begin), item.destination,
                {segment.range.begin - item.chunk_begin, segment.range.end - item.chunk_begin});
        }
}

void ReadJob::on_file_done(std::size_t) {}

void ReadJob::on_idle() {
    if (!handler_)
        return;
    Handler handler = std::move(handler_);
    handler_ = nullptr;
    if (exchange_) {
        report_.exchange = exchange_->take_report();
        exchange_->end();
    }
    touching_ = {};
    items_.clear(); // the owners' memory is the caller's alone before it hears of the end
    interval_.end();
    report_.work = meter_.report();
    if (!error_)
        try_step([&] {
            report_.reactor = reactor_.info();
            report_.notes = checkpoint_.notes;
            trace::add_problem(report_.notes);
            if (!report_.exchange.reason.empty())
                report_.notes.push_back("this rank took from others through shared memory: " +
                                        report_.exchange.reason);
        });
    metrics::add_read(report_, error_ ? metrics::Outcome::failed : metrics::Outcome::good);
    if (error_)
        handler(std::unexpected(std::move(*error_)));
    else
        handler(std::move(report_));
}

} // namespace safering::checkpoint
