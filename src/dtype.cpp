#include <safering/dtype.hpp>

#include <array>
#include <limits>
#include <string>

#include <fmt/format.h>

namespace safering {

namespace {

struct DtypeFacts {
    Dtype dtype;
    std::string_view name;
    unsigned bits;
};

constexpr std::array<DtypeFacts, dtype_count> all_facts{{
    {Dtype::boolean, "BOOL", 8},
    {Dtype::f4, "F4", 4},
    {Dtype::f6_e2m3, "F6_E2M3", 6},
    {Dtype::f6_e3m2, "F6_E3M2", 6},
    {Dtype::u8, "U8", 8},
    {Dtype::i8, "I8", 8},
    {Dtype::f8_e5m2, "F8_E5M2", 8},
    {Dtype::f8_e4m3, "F8_E4M3", 8},
    {Dtype::f8_e8m0, "F8_E8M0", 8},
    {Dtype::f8_e4m3fnuz, "F8_E4M3FNUZ", 8},
    {Dtype::f8_e5m2fnuz, "F8_E5M2FNUZ", 8},
    {Dtype::i16, "I16", 16},
    {Dtype::u16, "U16", 16},
    {Dtype::f16, "F16", 16},
    {Dtype::bf16, "BF16", 16},
    {Dtype::i32, "I32", 32},
    {Dtype::u32, "U32", 32},
    {Dtype::f32, "F32", 32},
    {Dtype::c64, "C64", 64},
    {Dtype::f64, "F64", 64},
    {Dtype::i64, "I64", 64},
    {Dtype::u64, "U64", 64},
}};

constexpr bool in_enum_order() {
    for (std::size_t i = 0; i < all_facts.size(); ++i)
        if (static_cast<std::size_t>(all_facts[i].dtype) != i)
            return false;
    return true;
}
static_assert(in_enum_order(), "all_facts is indexed by the enumerator");

const DtypeFacts& facts(Dtype dtype) {
    const auto index = static_cast<std::size_t>(dtype);
    SAFERING_ASSERT(index < all_facts.size());
    return all_facts[index];
}

std::string described(Dtype dtype, std::span<const std::uint64_t> shape) {
    std::string out = fmt::format("{} [", name(dtype));
    for (std::size_t i = 0; i < shape.size(); ++i)
        out += fmt::format("{}{}", i == 0 ? "" : ", ", shape[i]);
    return out + "]";
}

} // namespace

std::string_view name(Dtype dtype) {
    return facts(dtype).name;
}

std::optional<Dtype> parse_dtype(std::string_view name) {
    for (const DtypeFacts& each : all_facts)
        if (each.name == name)
            return each.dtype;
    return std::nullopt;
}

unsigned bits(Dtype dtype) {
    return facts(dtype).bits;
}

Result<std::uint64_t> byte_size(Dtype dtype, std::span<const std::uint64_t> shape) {
    // Zeros are left out of the product: [0, 2^63, 2^63] is refused in whatever order its
    // dimensions stand, because a reader that multiplies from the other end would overflow.
    std::uint64_t elements = 1;
    bool has_zero = false;
    for (const std::uint64_t extent : shape) {
        has_zero |= extent == 0;
        if (extent != 0 && __builtin_mul_overflow(elements, extent, &elements))
            return fail(Errc::header_size_overflow, "compute tensor size",
                        fmt::format("expected fewer than 2^64 elements, found {}",
                                    described(dtype, shape)));
    }
    // 128 bits, because a tensor of 2^64-1 bytes has more bits than 64 can count.
    __extension__ using Wide = unsigned __int128;
    const Wide all_bits = static_cast<Wide>(elements) * bits(dtype);
    if (all_bits / 8 > std::numeric_limits<std::uint64_t>::max())
        return fail(
            Errc::header_size_overflow, "compute tensor size",
            fmt::format("expected fewer than 2^64 bytes, found {}", described(dtype, shape)));
    if (has_zero)
        return 0;
    if (all_bits % 8 != 0)
        return fail(Errc::header_partial_byte, "compute tensor size",
                    fmt::format("expected a multiple of 8 bits, found {} ({} elements of {} bits)",
                                described(dtype, shape), elements, bits(dtype)));
    return static_cast<std::uint64_t>(all_bits / 8);
}

} // namespace safering
