// Any bytes as a message of another rank: nothing outside of them is read.
#include <cstring>
#include <memory>

#include <safering/byte_range.hpp>
#include <safering/error.hpp>

#include "checkpoint/peer_messages.hpp"

using namespace safering::checkpoint;

namespace {

template <typename T>
void check(std::span<const std::byte> message) {
    const std::vector<T> values = values_of<T>(message);
    SAFERING_ASSERT(values.size() * sizeof(T) <= message.size());
    if (!values.empty())
        SAFERING_ASSERT(std::memcmp(values.data(), message.data() + sizeof(PeerHead),
                                    values.size() * sizeof(T)) == 0);
}

template <typename First, typename T>
void check_parts(std::span<const std::byte> message) {
    const auto parts = parts_of<First, T>(message);
    if (parts)
        SAFERING_ASSERT(message.size() ==
                        sizeof(PeerHead) + sizeof(First) + parts->second.size() * sizeof(T));
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    // Memory of its own, so that a sanitizer sees what is read behind it.
    const auto copy = std::make_unique<std::byte[]>(size);
    if (size != 0)
        std::memcpy(copy.get(), data, size);
    const std::span<const std::byte> message(copy.get(), size);
    SAFERING_ASSERT(type_of(message).has_value() == (size >= sizeof(PeerHead)));
    check<char>(message);
    check<std::uint32_t>(message);
    check<std::uint64_t>(message);
    check<PeerItem>(message);
    check<PeerOrder>(message);
    check<PeerCells>(message);
    check<PeerCellName>(message);
    check<PeerWay>(message);
    check_parts<PeerCell, safering::ByteRange>(message);
    SAFERING_ASSERT(text_of(message).size() <= size);
    return 0;
}
