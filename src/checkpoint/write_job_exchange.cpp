// A WriteJob's part in the exchange between ranks of one host: what others give for the cells that this rank owns, and
// what this one gives.
#include "checkpoint/write_job.hpp"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

namespace safering::checkpoint {

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

void WriteJob::begin_exchange() {
    if (giving_)
        hold();
    heed_stop_at_once();
    const auto self = std::static_pointer_cast<WriteJob>(shared_from_this());
    exchange_->begin({.source_of = [self](std::uint32_t item) { return self->source_of(item); },
                      .on_ready = hear(&Heard::ready),
                      .on_released = hear(&Heard::done),
                      .on_failed = hear_failure()});
}

void WriteJob::on_turn() {
    if ((heard_.done || error_) && std::exchange(giving_, false))
        release();
    if (error_ && std::exchange(exchanging_, false))
        start_cells(); // none: to end
    else if (exchanging_ && heard_.ready)
        try_step([this] { on_exchange_ready(); });
}

void WriteJob::on_exchange_ready() {
    add_foreign(exchange_->plan());
    if (auto planned = plan_files(); !planned)
        return fail(std::move(planned.error()));
    for (const File& file : files_)
        for (const plan::CellRequest& request : file.plan.requests)
            cells_to_take_ += std::ranges::any_of(
                file.plan.segments_of(request),
                [&](const plan::Segment& segment) { return is_foreign(segment.item); });
    if (cells_to_take_ == 0)
        exchange_->finish_taking();
    exchanging_ = false;
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
void WriteJob::on_fail(const std::string& why) {
    if (!exchange_)
        return;
    exchange_->give_up(why);
    for (const auto& cell : std::exchange(fetching_, {}))
        finish_loading(cell);
    schedule_turn();
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

} // namespace safering::checkpoint
