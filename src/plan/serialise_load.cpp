// A load's plans as bytes. Ranges and cells rise, so that each is written as its distance from the one before.
#include <safering/plan.hpp>

#include <tuple>
#include <utility>

#include "plan/plan_codec.hpp"

namespace safering {

namespace {

using namespace plan;

// No file is longer, and no end of a range or of a cell overflows.
constexpr std::uint64_t most_bytes = std::uint64_t{1} << 63;

// Where the next thing of a rising list may begin.
struct Place {
    std::uint32_t file = 0;
    std::uint64_t at = 0;
};

// [begin, end) behind `place`, which moves to its end.
void put_span(ByteWriter& out, Place& place, std::uint32_t file, std::uint64_t begin,
              std::uint64_t end) {
    out.number(file - place.file);
    out.number(file == place.file ? begin - place.at : begin);
    out.number(end - begin);
    place = {file, end};
}

// The same, where both ends are at most `limit`.
std::pair<std::uint64_t, std::uint64_t> take_span(ByteReader& in, Place& place,
                                                  std::uint64_t limit) {
    if (const std::uint32_t files = in.number32(); files != 0) {
        if (files > ~std::uint32_t{0} - place.file)
            in.refuse("the index of a file is too large");
        place = {place.file + files, 0};
    }
    const std::uint64_t begin = place.at + in.number_up_to(limit - place.at);
    const std::uint64_t size = in.number_up_to(limit - begin);
    if (in.ok() && size == 0)
        in.refuse("a range is empty");
    place.at = begin + size;
    return {begin, place.at};
}

void put(ByteWriter& out, const std::vector<FileRange>& ranges) {
    out.number(ranges.size());
    Place place;
    for (const auto& [file, range] : ranges)
        put_span(out, place, file, range.begin, range.end);
}

std::vector<FileRange> take_ranges(ByteReader& in) {
    Place place;
    return take_list(in, 3, [&] {
        const auto [begin, end] = take_span(in, place, most_bytes);
        return FileRange{place.file, {begin, end}};
    });
}

void put(ByteWriter& out, const LoadOffer& offer) {
    out.text(offer.endpoint);
    out.text(offer.checkpoint);
    out.number(offer.chunk_bytes);
    put(out, offer.ranges);
}

LoadOffer take_offer(ByteReader& in) {
    LoadOffer offer;
    offer.endpoint = in.text();
    offer.checkpoint = in.text();
    offer.chunk_bytes = take_chunk_bytes(in);
    offer.ranges = take_ranges(in);
    return offer;
}

void put(ByteWriter& out, const LoadExchange& exchange) {
    out.text(exchange.id);
    out.number(exchange.rank);
    out.byte(static_cast<std::uint8_t>(exchange.way));
    out.number(exchange.chunk_bytes);
    out.number(exchange.cells.size());
    Place place;
    for (const SharedCells& cells : exchange.cells) {
        put_span(out, place, cells.file, cells.first_cell, cells.last_cell);
        out.number(cells.owner);
        out.number(cells.takers.size());
        for (const std::uint32_t taker : cells.takers)
            out.number(taker);
    }
    put(out, exchange.reads);
    plan::put(out, exchange.peers);
}

LoadExchange take_exchange(ByteReader& in) {
    LoadExchange exchange;
    exchange.id = in.text();
    exchange.rank = in.number32();
    exchange.way = take_way(in);
    exchange.chunk_bytes = take_chunk_bytes(in);
    Place place;
    exchange.cells = take_list(in, 5, [&] {
        SharedCells cells;
        std::tie(cells.first_cell, cells.last_cell) =
            take_span(in, place, in.ok() ? most_bytes / exchange.chunk_bytes : 0);
        cells.file = place.file;
        cells.owner = in.number32();
        cells.takers = take_list(in, 1, [&] { return in.number32(); });
        return cells;
    });
    exchange.reads = take_ranges(in);
    exchange.peers = take_peers(in);
    return exchange;
}

} // namespace

std::vector<std::byte> to_bytes(const LoadPlan& plan) {
    ByteWriter out(ByteKind::load_plan);
    out.number(plan.items.size());
    for (const ReadItem& item : plan.items) {
        out.name(item.fqn);
        out.number(item.chunk);
        out.shape(item.storage_offsets);
        out.shape(item.dest_index);
        out.shape(item.dest_offsets);
        out.shape(item.lengths);
    }
    out.byte(plan.offer ? 1 : 0);
    if (plan.offer)
        put(out, *plan.offer);
    out.byte(plan.exchange ? 1 : 0);
    if (plan.exchange)
        put(out, *plan.exchange);
    return std::move(out).finish();
}

Result<LoadPlan> load_plan_from_bytes(std::span<const std::byte> bytes) {
    ByteReader in(bytes, ByteKind::load_plan);
    LoadPlan plan;
    plan.items = take_list(in, 6, [&] {
        ReadItem item;
        item.fqn = in.name();
        item.chunk = in.number32();
        item.storage_offsets = in.shape();
        item.dest_index = in.shape();
        item.dest_offsets = in.shape();
        item.lengths = in.shape();
        return item;
    });
    if (take_flag(in))
        plan.offer = take_offer(in);
    if (take_flag(in))
        plan.exchange = take_exchange(in);
    return finish(in, std::move(plan));
}

} // namespace safering
