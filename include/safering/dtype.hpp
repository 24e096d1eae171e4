// The element types of the safetensors format.
// Source of names and widths: the safetensors README and its reader, version 0.8.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include <safering/error.hpp>

namespace safering {

enum class Dtype : std::uint8_t {
    boolean,
    f4,
    f6_e2m3,
    f6_e3m2,
    u8,
    i8,
    f8_e5m2,
    f8_e4m3,
    f8_e8m0,
    f8_e4m3fnuz,
    f8_e5m2fnuz,
    i16,
    u16,
    f16,
    bf16,
    i32,
    u32,
    f32,
    c64,
    f64,
    i64,
    u64,
};
inline constexpr std::size_t dtype_count = 22;

/// The name as it stands in a header: "BOOL", "F8_E4M3", "BF16", ...
SAFERING_API std::string_view name(Dtype dtype);
/// Exact, case-sensitive.
SAFERING_API std::optional<Dtype> parse_dtype(std::string_view name);
/// Bits of one element: 4, 6, 8, 16, 32 or 64.
SAFERING_API unsigned bits(Dtype dtype);

/// Bytes of a dense tensor. Errors: header_size_overflow where a product passes 2^64 (even where another
/// dimension is 0), header_partial_byte where the bits are not whole bytes.
SAFERING_API Result<std::uint64_t> byte_size(Dtype dtype, std::span<const std::uint64_t> shape);

} // namespace safering
