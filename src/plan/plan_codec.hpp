// What the bytes of several values have in common: lists, flags, the index of a file, exchanges.
#pragma once

#include <algorithm>
#include <bit>
#include <type_traits>
#include <vector>

#include <safering/plan.hpp>

#include "plan/byte_codec.hpp"

namespace safering::plan {

// Reserved before the first element has been read: the rest must be there before it costs memory.
inline constexpr std::size_t most_reserved = 4096;

/// A list of things that take at least `least_bytes` each.
template <typename List = void, typename Take>
auto take_list(ByteReader& in, std::size_t least_bytes, Take take) {
    std::conditional_t<std::is_void_v<List>, std::vector<decltype(take())>, List> list;
    const std::size_t count = in.count(least_bytes);
    list.reserve(std::min(count, most_reserved));
    for (std::size_t i = 0; i < count && in.ok(); ++i)
        list.push_back(take());
    return list;
}

/// Whether an optional value follows.
inline bool take_flag(ByteReader& in) {
    const std::uint8_t flag = in.byte();
    if (flag > 1)
        in.refuse("expected 0 or 1");
    return flag == 1;
}

inline std::uint64_t take_chunk_bytes(ByteReader& in) {
    const std::uint64_t chunk_bytes = in.number();
    if (chunk_bytes < 4096 || !std::has_single_bit(chunk_bytes))
        in.refuse("chunk_bytes is not a power of two of at least 4096");
    return chunk_bytes;
}

inline ExchangeWay take_way(ByteReader& in) {
    const std::uint8_t way = in.byte();
    if (way > static_cast<std::uint8_t>(ExchangeWay::shared_memory))
        in.refuse("unknown way of exchange");
    return static_cast<ExchangeWay>(way);
}

inline void put(ByteWriter& out, const std::vector<ExchangePeer>& peers) {
    out.number(peers.size());
    for (const ExchangePeer& peer : peers) {
        out.number(peer.rank);
        out.text(peer.endpoint);
    }
}
inline std::vector<ExchangePeer> take_peers(ByteReader& in) {
    return take_list(in, 2, [&] {
        ExchangePeer peer;
        peer.rank = in.number32();
        peer.endpoint = in.text();
        return peer;
    });
}

template <typename T>
Result<T> finish(ByteReader& in, T value) {
    if (auto good = in.finish(); !good)
        return std::unexpected(std::move(good.error()));
    return value;
}

} // namespace safering::plan
