#include "plan/byte_codec.hpp"

#include <array>
#include <bit>
#include <cstring>

#include <xxhash.h>

namespace safering::plan {

namespace {

constexpr std::array<char, 4> magic{'S', 'F', 'R', 'G'};
// Raised with every change of what follows; there is no reading of other versions.
constexpr std::uint8_t version = 3;
constexpr std::size_t checksum_bytes = 8;

// Also what a copy of the other byte order does, so that the bytes are the same on every host.
std::uint64_t little_endian(std::uint64_t value) {
    return std::endian::native == std::endian::little ? value : __builtin_bswap64(value);
}

} // namespace

ByteWriter::ByteWriter(ByteKind kind) {
    for (const char c : magic)
        byte(static_cast<std::uint8_t>(c));
    byte(static_cast<std::uint8_t>(kind));
    byte(version);
}

void ByteWriter::number(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7)
        byte(static_cast<std::uint8_t>(value | 0x80));
    byte(static_cast<std::uint8_t>(value));
}

void ByteWriter::fixed(std::uint64_t value) {
    const auto raw = std::bit_cast<std::array<std::byte, 8>>(little_endian(value));
    bytes_.insert(bytes_.end(), raw.begin(), raw.end());
}

void ByteWriter::text(std::string_view value) {
    number(value.size());
    const auto* data = reinterpret_cast<const std::byte*>(value.data());
    bytes_.insert(bytes_.end(), data, data + value.size());
}

void ByteWriter::name(std::string_view value) {
    // 0 and the text where it is new or long, else its number from 1.
    if (value.size() <= shared_name_bytes) {
        const auto [at, is_new] = names_.try_emplace(value, names_.size() + 1);
        if (!is_new)
            return number(at->second);
    }
    number(0);
    text(value);
}

void ByteWriter::shape(const Shape& shape) {
    number(shape.size());
    for (const std::uint64_t extent : shape)
        number(extent);
}

std::vector<std::byte> ByteWriter::finish() && {
    fixed(XXH3_64bits(bytes_.data(), bytes_.size()));
    return std::move(bytes_);
}

ByteReader::ByteReader(std::span<const std::byte> bytes, ByteKind kind) {
    if (bytes.size() < magic.size() + 2 + checksum_bytes ||
        std::memcmp(bytes.data(), magic.data(), magic.size()) != 0) {
        refuse("expected the bytes of a plan, results or metadata of safering");
        return;
    }
    bytes_ = bytes.first(bytes.size() - checksum_bytes);
    at_ = magic.size();
    const std::uint8_t found_kind = byte(), found_version = byte();
    std::uint64_t checksum = 0;
    std::memcpy(&checksum, bytes.data() + bytes_.size(), checksum_bytes);
    if (found_version != version)
        refuse("expected version " + std::to_string(version) + ", found " +
               std::to_string(found_version) + "; use one version of safering on all ranks");
    else if (found_kind != static_cast<std::uint8_t>(kind))
        refuse("expected another kind of value");
    else if (little_endian(checksum) != XXH3_64bits(bytes_.data(), bytes_.size()))
        refuse("the checksum does not match; bytes were lost or changed on the way");
}

void ByteReader::refuse(std::string_view fault) {
    if (ok())
        fault_ = fault;
}

std::uint8_t ByteReader::byte() {
    if (!ok())
        return 0;
    if (left() == 0) {
        refuse("ends early");
        return 0;
    }
    return static_cast<std::uint8_t>(bytes_[at_++]);
}

std::uint64_t ByteReader::number() {
    std::uint64_t value = 0;
    for (unsigned shift = 0;; shift += 7) {
        const std::uint8_t next = byte();
        // One number has one form: no high zeros, nothing past 64 bits.
        if ((shift > 0 && next == 0) || (shift == 63 && next > 1)) {
            refuse("a number has too many digits");
            return 0;
        }
        value |= static_cast<std::uint64_t>(next & 0x7F) << shift;
        if (next < 0x80)
            return ok() ? value : 0;
    }
}

std::uint64_t ByteReader::number_up_to(std::uint64_t largest) {
    const std::uint64_t value = number();
    if (value <= largest)
        return value;
    refuse("a number is too large");
    return 0;
}

std::size_t ByteReader::count(std::size_t least_bytes) {
    const std::uint64_t value = number();
    if (value <= left() / least_bytes)
        return ok() ? value : 0;
    refuse("a count is larger than the bytes that follow allow");
    return 0;
}

std::uint64_t ByteReader::fixed() {
    if (!ok())
        return 0;
    if (left() < 8) {
        refuse("ends early");
        return 0;
    }
    std::uint64_t value = 0;
    std::memcpy(&value, bytes_.data() + at_, 8);
    at_ += 8;
    return little_endian(value);
}

std::string_view ByteReader::view() {
    const std::size_t size = count(1);
    const std::string_view text(reinterpret_cast<const char*>(bytes_.data()) + at_, size);
    at_ += size;
    return text;
}

std::string ByteReader::text() {
    return std::string(view());
}

TensorName ByteReader::name() {
    const std::uint64_t number = number_up_to(names_.size());
    if (number > 0)
        return names_[number - 1];
    TensorName name = made_.add(view());
    if (ok() && name.size() <= shared_name_bytes)
        names_.push_back(name);
    return name;
}

Shape ByteReader::shape() {
    const std::size_t rank = count(1);
    if (rank > max_rank) {
        refuse("a shape has more than 64 dimensions");
        return {};
    }
    Shape shape(rank);
    for (std::uint64_t& extent : shape)
        extent = number();
    return shape;
}

Result<void> ByteReader::finish() {
    if (ok() && left() > 0)
        refuse("bytes follow the end of the value");
    if (ok())
        return {};
    auto error = fail(Errc::plan_bad_bytes, "read serialised plan", fault_);
    error.error().offset = at_;
    return error;
}

} // namespace safering::plan
