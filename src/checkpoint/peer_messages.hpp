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
#include <vector>

#include "io/peer_socket.hpp"

namespace safering::checkpoint {

enum class PeerMessage : std::uint32_t {
    want,      ///< taker: where do these items (u32) lie?
    table,     ///< source: here (PeerItem), in the order of the question
    watch,     ///< source: tell me by your end that you have ended
    permit,    ///< taker: let me read your memory
    permitted, ///< source: it is allowed now
    segment,   ///< taker: map this (its bytes, u64; with the descriptor)
    fill,      ///< taker: put bytes of an item there (PeerOrder)
    filled,    ///< source: they are there (the slot, u32)
    done,      ///< taker: I need your memory no more
    failed,    ///< either: I have given up (text)
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
inline std::string text_of(std::span<const std::byte> message) {
    const std::vector<char> text = values_of<char>(message);
    return {text.begin(), text.end()};
}

} // namespace safering::checkpoint
