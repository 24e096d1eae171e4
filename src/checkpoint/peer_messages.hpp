// What ranks of a host say to each other in an exchange: a type, a count, and so many plain values. Both ends run on
// one machine and, as their plans say, one version of this library.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "io/peer_socket.hpp"

namespace safering::checkpoint {

enum class PeerMessage : std::uint32_t {
    failed,    ///< I have given up (text)
    permit,    ///< let me read your memory
    permitted, ///< it is allowed now
    slots,     ///< map this (its bytes, u64; with the descriptor)
    // Of a save, where takers ask sources.
    want,   ///< taker: where do these items (u32) lie?
    table,  ///< source: here (PeerItem), in the order of the question
    fill,   ///< taker: put bytes of an item there (PeerOrder)
    filled, ///< source: they are there (the slot, u32)
    done,   ///< taker: I need your memory no more
    // Of a load, where owners tell takers.
    here,       ///< owner: a byte of mine to try (its address, u64)
    take_cells, ///< taker: I take these of your cells (PeerCells)
    takes,      ///< taker: those are all, and this is how (PeerWay)
    cell,       ///< owner: a cell is there (PeerCell, then the ranges of the file that it holds)
    cell_taken, ///< taker: I have what I want of it (PeerCellName)
    all_given,  ///< owner: what you took was good, and all that you wanted
};

struct PeerItem {
    std::uint64_t address;
    std::uint64_t kind;
};

struct PeerOrder {
    std::uint32_t slot;
    std::uint32_t item;
    std::uint64_t cell_begin;
    std::uint64_t begin;
    std::uint64_t end;
};

struct PeerCells {
    std::uint64_t file;
    std::uint64_t first_cell;
    std::uint64_t last_cell;
};

enum class PeerWay : std::uint32_t { in_place, slots };

struct PeerCellName {
    std::uint64_t file;
    std::uint64_t cell;
};

/// Byte `image_begin` of the file lies at `address` of the owner's memory, or at the begin of its slot.
struct PeerCell {
    PeerCellName name;
    std::uint64_t image_begin;
    PeerWay way;
    std::uint32_t slot;
    std::uint64_t address;
};

struct PeerHead {
    PeerMessage type;
    std::uint32_t count;
};

template <typename T = char>
std::vector<std::byte> peer_message(PeerMessage type, std::span<const T> values = {}) {
    static_assert(std::is_trivially_copyable_v<T>);
    const PeerHead head{type, static_cast<std::uint32_t>(values.size())};
    std::vector<std::byte> bytes(sizeof head + values.size_bytes());
    std::memcpy(bytes.data(), &head, sizeof head);
    if (!values.empty())
        std::memcpy(bytes.data() + sizeof head, values.data(), values.size_bytes());
    return bytes;
}
template <typename T>
std::vector<std::byte> peer_message(PeerMessage type, const T& value) {
    return peer_message<T>(type, std::span<const T>(&value, 1));
}
inline std::vector<std::byte> failed_message(std::string_view why) {
    return peer_message<char>(PeerMessage::failed, std::span(why.substr(0, 4096)));
}

/// One value, and as many of another kind as there are; the count is theirs.
template <typename First, typename T>
std::vector<std::byte> peer_message(PeerMessage type, const First& first, std::span<const T> rest) {
    static_assert(std::is_trivially_copyable_v<First> && std::is_trivially_copyable_v<T>);
    std::vector<std::byte> bytes = peer_message<T>(type, rest);
    const auto* data = reinterpret_cast<const std::byte*>(&first);
    bytes.insert(bytes.begin() + sizeof(PeerHead), data, data + sizeof first);
    return bytes;
}

/// The type of a message; nothing for one that is too short to have one.
inline std::optional<PeerMessage> type_of(std::span<const std::byte> message) {
    PeerHead head;
    if (message.size() < sizeof head)
        return std::nullopt;
    std::memcpy(&head, message.data(), sizeof head);
    return head.type;
}
/// Its values; none where its length is not what its count says.
template <typename T>
std::vector<T> values_of(std::span<const std::byte> message) {
    PeerHead head;
    if (message.size() < sizeof head)
        return {};
    std::memcpy(&head, message.data(), sizeof head);
    if (message.size() != sizeof head + head.count * sizeof(T))
        return {};
    std::vector<T> values(head.count);
    if (!values.empty())
        std::memcpy(values.data(), message.data() + sizeof head, values.size() * sizeof(T));
    return values;
}
/// Both of them; nothing where the length is not what the count says.
template <typename First, typename T>
std::optional<std::pair<First, std::vector<T>>> parts_of(std::span<const std::byte> message) {
    PeerHead head;
    if (message.size() < sizeof head)
        return std::nullopt;
    std::memcpy(&head, message.data(), sizeof head);
    if (message.size() != sizeof head + sizeof(First) + head.count * sizeof(T))
        return std::nullopt;
    std::pair<First, std::vector<T>> parts{{}, std::vector<T>(head.count)};
    std::memcpy(&parts.first, message.data() + sizeof head, sizeof(First));
    if (!parts.second.empty())
        std::memcpy(parts.second.data(), message.data() + sizeof head + sizeof(First),
                    parts.second.size() * sizeof(T));
    return parts;
}
inline std::string text_of(std::span<const std::byte> message) {
    const std::vector<char> text = values_of<char>(message);
    return {text.begin(), text.end()};
}

} // namespace safering::checkpoint
