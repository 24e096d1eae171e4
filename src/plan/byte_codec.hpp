// Bytes of serialised values: an envelope (magic, kind, version ... checksum) around
// variable-length integers, strings and names. The reader trusts nothing: it never reads past the
// end, and a count is believed only as far as the bytes that are left could hold so many.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <safering/tensor.hpp>
#include <safering/tensor_name.hpp>

namespace safering::plan {

enum class ByteKind : std::uint8_t {
    save_plan = 1,
    write_results,
    load_plan,
    metadata,
    storage_plan,
    rank_message
};

/// Longer names are written out each time: a short input cannot repeat a long string at will.
inline constexpr std::size_t shared_name_bytes = 256;
/// No tensor has more dimensions; PyTorch allows 64.
inline constexpr std::size_t max_rank = 64;

class ByteWriter {
  public:
    explicit ByteWriter(ByteKind kind);

    void byte(std::uint8_t value) { bytes_.push_back(static_cast<std::byte>(value)); }
    /// Seven bits a byte, lowest first.
    void number(std::uint64_t value);
    /// Eight bytes, little-endian.
    void fixed(std::uint64_t value);
    void text(std::string_view value);
    /// A name that comes again, stored where it stands first. Must outlive the writer.
    void name(std::string_view value);
    void shape(const Shape& shape);
    /// Appends the checksum.
    std::vector<std::byte> finish() &&;

  private:
    std::vector<std::byte> bytes_;
    std::unordered_map<std::string_view, std::uint64_t> names_;
};

/// The first failure sticks: from then on every read gives zeros, and ok() is false.
class ByteReader {
  public:
    /// Checks envelope and checksum.
    ByteReader(std::span<const std::byte> bytes, ByteKind kind);

    bool ok() const { return fault_.empty(); }
    std::uint8_t byte();
    std::uint64_t number();
    /// A number of at most `largest`.
    std::uint64_t number_up_to(std::uint64_t largest);
    std::uint32_t number32() {
        return static_cast<std::uint32_t>(number_up_to(std::numeric_limits<std::uint32_t>::max()));
    }
    /// A number of things that take at least `least_bytes` bytes each.
    std::size_t count(std::size_t least_bytes);
    std::uint64_t fixed();
    std::string text();
    TensorName name();
    Shape shape();
    /// A value was read that may not be here.
    void refuse(std::string_view fault);
    /// Nothing, where all was read and nothing is left; else plan_bad_bytes.
    Result<void> finish();

  private:
    std::size_t left() const { return bytes_.size() - at_; }
    std::string_view view();

    std::span<const std::byte> bytes_; // without the checksum
    std::size_t at_ = 0;
    std::string fault_;
    TensorNames made_;
    std::vector<TensorName> names_;
};

} // namespace safering::plan
