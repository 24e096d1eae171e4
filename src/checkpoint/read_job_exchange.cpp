// ReadJob's part in the exchange of a load: which cells it leaves to others, which it reads for them.
#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "checkpoint/load_offer.hpp"
#include "checkpoint/read_job.hpp"
#include "plan/load_exchange_plan.hpp"

namespace safering::checkpoint {

namespace {

// Whether what was read holds the segment, of which `box` (none: all of it) says which bytes are meant.
bool holds(const std::vector<ByteRange>& ranges, const plan::Segment& segment,
           const plan::FileBox& box, std::uint64_t begin) {
    const auto inside = [&](ByteRange bytes) {
        return std::ranges::any_of(ranges, [&](ByteRange range) { return range.contains(bytes); });
    };
    if (inside(segment.range) || !segment.strided)
        return inside(segment.range);
    bool all = true;
    box.for_each_run({segment.range.begin - begin, segment.range.end - begin},
                     [&](ByteRange run) { all = all && inside(run.shifted(begin)); });
    return all;
}

} // namespace

Result<void> ReadJob::join_exchange(const LoadExchange& exchange) {
    if (exchange.chunk_bytes != chunk_bytes_)
        return safering::fail(
            Errc::plan_bad_bytes, "read data",
            fmt::format("the plan exchanges cells of {} bytes, this rank reads in cells of {}: "
                        "verification and buffers must be those of the planning",
                        exchange.chunk_bytes, chunk_bytes_));
    if (const std::string own = identity_of(checkpoint_, options_.verification);
        plan::checkpoint_of(exchange) != own)
        return std::unexpected(Error{
            .code = Errc::checkpoint_foreign_attempt,
            .operation = "read data in exchange with ranks of this host",
            .file = checkpoint_.path,
            .detail = fmt::format(
                "the plan is of the files {}, this reader has opened {} (attempt \"{}\") or checks "
                "them in another way: open the checkpoint and plan the load again, on all ranks",
                escaped(plan::checkpoint_of(exchange)), own, checkpoint_.attempt)});
    auto made = ReadExchange::make(reactor_, exchange);
    if (!made)
        return std::unexpected(std::move(made.error()));
    exchange_ = std::move(*made);
    for (const SharedCells& cells : exchange.cells)
        if (cells.file >= checkpoint_.files.size())
            return safering::fail(Errc::plan_bad_bytes, "read data",
                                  "the plan exchanges cells of a file that is none");
    for (const FileRange& read : exchange.reads)
        if (read.file >= checkpoint_.files.size() ||
            read.range.end > checkpoint_.files[read.file].file_bytes())
            return safering::fail(Errc::plan_bad_bytes, "read data",
                                  "the plan exchanges bytes that no file has");
    set_taken_apart();
    return {};
}

// What others read is none of the pipeline's.
void ReadJob::set_taken_apart() {
    for (std::size_t f = 0; f < files_.size(); ++f)
        std::erase_if(files_[f].plan.requests, [&](const plan::CellRequest& request) {
            const CellName name = name_of(f, request);
            const auto owner = exchange_->owner_of(name);
            if (!owner || *owner == exchange_->plan().rank)
                return false;
            taken_.push_back({name, f, request});
            return true;
        });
    std::ranges::sort(taken_, {}, &Taken::name);
}

// What this rank reads for others, with what it wants of it.
void ReadJob::add_given() {
    for (std::uint32_t f = 0; f < checkpoint_.files.size(); ++f) {
        const std::vector<std::uint64_t> cells = exchange_->giver().wanted_cells(f);
        if (cells.empty())
            continue;
        auto place = static_cast<std::size_t>(std::ranges::find(stored_, f) - stored_.begin());
        if (place == stored_.size())
            add_file(f, {});
        std::vector<plan::CellRequest>& requests = files_[place].plan.requests;
        const std::size_t own = requests.size();
        std::size_t at = 0; // of the own ones, which rise as the cells do
        for (const std::uint64_t cell : cells) {
            while (at < own && requests[at].range.begin / chunk_bytes_ < cell)
                ++at;
            const std::vector<ByteRange> reads = exchange_->reads_of({f, cell});
            if (reads.empty()) // who takes it would wait for ever
                return fail({.code = Errc::plan_bad_bytes,
                             .operation = "read data",
                             .detail = "the plan exchanges a cell of which it reads nothing"});
            const ByteRange all{reads.front().begin, reads.back().end};
            if (at == own || requests[at].range.begin / chunk_bytes_ != cell) {
                requests.push_back({.range = all, .gaps = true});
                continue;
            }
            plan::CellRequest& request = requests[at];
            request.range = {std::min(request.range.begin, all.begin),
                             std::max(request.range.end, all.end)};
            request.gaps = true; // its segments say what it wants
        }
        std::ranges::sort(requests, {}, [](const auto& request) { return request.range.begin; });
    }
}

void ReadJob::begin_exchange() {
    waiting_ = exchanging_ = true;
    hold();
    heed_stop_at_once();
    std::vector<CellName> wanted;
    for (const Taken& taken : taken_)
        wanted.push_back(taken.name);
    // A cell is copied at once, not in the next turn: its owner keeps it only so long.
    exchange_->begin({.on_ready = hear(&Heard::ready),
                      .on_cell = [this](const CellName& name,
                                        const CellImage& image) { return take(name, image); },
                      .on_done = hear(&Heard::done),
                      .on_failed = hear_failure()},
                     wanted);
}

void ReadJob::on_turn() {
    if ((heard_.done || error_) && std::exchange(exchanging_, false))
        release();
    if (waiting_ && heard_.ready && !error_)
        try_step([this] { add_given(); });
    if ((heard_.ready || error_) && std::exchange(waiting_, false))
        start_cells();
}

// Other ranks are told; what waits for them ends.
void ReadJob::on_fail(const std::string& why) {
    if (!exchange_)
        return;
    exchange_->give_up(why);
    for (const auto& cell : std::exchange(given_, {}))
        finish_unloading(cell);
    schedule_turn();
}

bool ReadJob::is_given(const CellName& name) const {
    return exchange_ && exchange_->owner_of(name) == exchange_->plan().rank &&
           exchange_->giver().is_wanted(name);
}

void ReadJob::give(const CellName& name, const std::shared_ptr<Cell>& cell) {
    std::vector<ByteRange> ranges;
    for (const plan::Transfer& transfer : cell->transfers)
        ranges.push_back(transfer.range);
    exchange_->giver().give(name, cell->buffer.data(), cell->image_begin, std::move(ranges),
                            [this, cell] {
                                if (std::erase(given_, cell) != 0)
                                    finish_unloading(cell);
                            });
}

Result<std::uint64_t> ReadJob::take(const CellName& name, const CellImage& image) {
    const auto taken = std::ranges::lower_bound(taken_, name, {}, &Taken::name);
    SAFERING_ASSERT(taken != taken_.end() && taken->name == name);
    const File& file = files_[taken->file];
    std::uint64_t bytes = 0;
    for (const plan::Segment& segment : file.plan.segments_of(taken->request)) {
        const Item& item = items_[segment.item];
        const plan::FileBox& box = item.copy.file_box();
        const ByteRange window{segment.range.begin - item.chunk_begin,
                               segment.range.end - item.chunk_begin};
        if (!holds(image.ranges, segment, box, item.chunk_begin))
            return std::unexpected(
                Error{.code = Errc::plan_bad_bytes,
                      .operation = "read data",
                      .file = file.path,
                      .offset = segment.range.begin,
                      .length = segment.range.size(),
                      .detail = "the owner has not read it; load the items that were planned"});
        const std::uint64_t into = segment.range.begin - image.begin;
        if (image.data != nullptr)
            item.copy.scatter(image.data + into, item.destination, window);
        else if (auto copied = scatter_.scatter(item.copy, image.process, image.address + into,
                                                item.destination, window);
                 !copied)
            return std::unexpected(std::move(copied.error()));
        bytes += box.bytes_before(window.end) - box.bytes_before(window.begin);
    }
    count_done(file, taken->request);
    return bytes;
}

} // namespace safering::checkpoint
