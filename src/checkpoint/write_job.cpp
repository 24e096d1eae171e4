#include "checkpoint/write_job.hpp"

#include <algorithm>
#include <bit>
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

// Below this a run goes through the page cache: a device takes about as long for one small direct write as
// the copy and writeback of so many bytes.
constexpr std::uint64_t direct_min_bytes = std::uint64_t{64} << 10;

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
    if (auto planned = job->plan_requests(plan, planner); !planned)
        return std::unexpected(std::move(planned.error()));
    return job;
}

WriteJob::WriteJob(Reactor& reactor, const StoragePlan& storage, WriteJobOptions options)
    : CellPipeline(reactor, Opcode::write, std::move(options.progress), std::move(options.stop)),
      directory_(storage.directory), chunk_bytes_(storage.chunk_bytes), digests_(options.digests) {}

// Its own bytes in its file, checked.
Result<plan::FileSpan> WriteJob::add_item(const SavePlan& plan, std::size_t index,
                                          TensorView source) {
    const StoragePlan& storage = *plan.storage;
    const WriteItem& item = plan.items[index];
    const ItemPlacement& placement = storage.placements[index];
    if (auto checked = check_source(plan, index, source); !checked)
        return std::unexpected(std::move(checked.error()));
    if (placement.file >= storage.files.size())
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
    const PlannedFile& file = storage.files[placement.file];
    const ByteRange hull = box.hull().shifted(placement.tensor_begin);
    if (hull.end > file.file_bytes || placement.tensor_begin < file.data_begin)
        return safering::fail(
            Errc::plan_out_of_bounds, "write data",
            fmt::format("item of \"{}\" lies outside {}", escaped(item.fqn), file.name));
    results_.items.push_back({.index = item.index(),
                              .size_in_bytes = box.bytes(),
                              .storage = {placement.file, placement.tensor_begin, *length},
                              .digests = Digests(digests_ ? cell_count(hull, chunk_bytes_) : 0)});
    const plan::FileSpan span{hull, static_cast<std::uint32_t>(index), !box.contiguous()};
    items_.push_back({std::move(*copy), source.data, std::move(source.owner),
                      placement.tensor_begin, hull.begin / chunk_bytes_});
    return span;
}

Result<void> WriteJob::plan_requests(const SavePlan& plan, SavePlanner& planner) {
    const StoragePlan& storage = *plan.storage;
    results_ = {.rank = plan.rank, .attempt = storage.attempt, .files = {}, .items = {}};
    for (const PlannedFile& file : storage.files)
        results_.files.push_back(file.name);
    std::vector<std::vector<plan::FileSpan>> spans(storage.files.size());
    items_.reserve(plan.items.size());
    results_.items.reserve(plan.items.size());
    for (std::size_t i = 0; i < plan.items.size(); ++i) {
        auto source = planner.resolve_data(plan.items[i]);
        if (!source)
            return std::unexpected(std::move(source.error()));
        auto span = add_item(plan, i, std::move(*source));
        if (!span)
            return std::unexpected(std::move(span.error()));
        spans[storage.placements[i].file].push_back(*span);
    }
    for (std::uint32_t f = 0; f < spans.size(); ++f) {
        auto requests = plan::RequestPlanner(chunk_bytes_).plan_writes(std::move(spans[f]));
        if (!requests) {
            requests.error().file = storage.files[f].name;
            return std::unexpected(std::move(requests.error()));
        }
        if (requests->requests.empty())
            continue;
        files_.push_back({.path = join(directory_, storage.files[f].name),
                          .file_bytes = storage.files[f].file_bytes,
                          .plan = std::move(*requests)});
    }
    return {};
}

void WriteJob::start(Handler handler) {
    handler_ = std::move(handler);
    boost::asio::post(reactor_.executor(), [self = std::static_pointer_cast<WriteJob>(
                                                shared_from_this())] { self->open_files(); });
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
        if (completion.error == std::errc::too_many_files_open && error_)
            error_->detail = too_many_files_hint;
        if (completion.error == std::errc::no_such_file_or_directory &&
            error_->code == std::errc::no_such_file_or_directory)
            error_ =
                Error{.code = Errc::checkpoint_not_visible,
                      .operation = "write data",
                      .file = directory_,
                      .detail = "the coordinator made this directory, this rank does not see it: "
                                "all ranks must reach one file system under the same path (or the "
                                "save was aborted meanwhile)"};
        if (!completion.error)
            file = static_cast<int>(completion.result);
        if (--*left == 0)
            start_cells();
    };
    for (File& file : files_) {
        Request request{.op = Opcode::open, .mode = OpenMode::update, .path = file.path};
        submit_other(request, file.path, [&file, opened](const Completion& completion) {
            opened(file.buffered, completion);
        });
        request.caching = Caching::direct;
        submit_other(request, file.path, [&file, opened](const Completion& completion) {
            opened(file.direct, completion);
        });
    }
}

const plan::FileBox& WriteJob::box_of(std::uint32_t item) const {
    return items_[item].copy.file_box();
}

std::uint64_t WriteJob::tensor_begin_of(std::uint32_t item) const {
    return items_[item].tensor_begin;
}

Result<void> WriteJob::load(Cell& cell) {
    cell.image_begin = round_down(cell.request->range.begin, block_bytes);
    plan::Digest digest;
    for (const plan::Segment& segment : files_[cell.file].plan.segments_of(*cell.request)) {
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
    cell.transfers = plan::write_transfers(runs_of(cell), block_bytes, direct_min_bytes);
    return {};
}

Result<void> WriteJob::unload(Cell&) {
    return {};
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
