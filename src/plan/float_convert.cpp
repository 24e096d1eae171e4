#include "plan/float_convert.hpp"

#include <bit>
#include <cstring>

namespace safering::plan {

namespace {

template <typename Word, int exponent, int fraction>
struct Format {
    using Bits = Word;
    static constexpr int fraction_bits = fraction;
    static constexpr int bias = (1 << (exponent - 1)) - 1;
    static constexpr std::uint64_t top_exponent = (std::uint64_t{1} << exponent) - 1;
    static constexpr std::uint64_t fraction_mask = (std::uint64_t{1} << fraction) - 1;
    static constexpr std::uint64_t infinity = top_exponent << fraction;
    static constexpr std::uint64_t quiet = std::uint64_t{1} << (fraction - 1);
    static constexpr int sign_place = exponent + fraction;
};
using F16 = Format<std::uint16_t, 5, 10>;
using BF16 = Format<std::uint16_t, 8, 7>;
using F32 = Format<std::uint32_t, 8, 23>;
using F64 = Format<std::uint64_t, 11, 52>;

// The bits of `significand` above its lowest `shift`, to the nearest, ties to even. 1 <= shift.
std::uint64_t round_off(std::uint64_t significand, int shift) {
    if (shift > 64)
        return 0;
    const std::uint64_t half = std::uint64_t{1} << (shift - 1);
    const std::uint64_t rest = significand & (half | (half - 1));
    const std::uint64_t kept = shift == 64 ? 0 : significand >> shift;
    return kept + (rest > half || (rest == half && (kept & 1) != 0) ? 1 : 0);
}

template <typename To, typename From>
typename To::Bits convert_one(typename From::Bits word) {
    const std::uint64_t bits = word;
    const std::uint64_t sign = (bits >> From::sign_place) << To::sign_place;
    const std::uint64_t stored_exponent = (bits >> From::fraction_bits) & From::top_exponent;
    const std::uint64_t fraction = bits & From::fraction_mask;
    if (stored_exponent == From::top_exponent) {
        std::uint64_t payload = 0;
        if (fraction != 0) {
            constexpr int wider = To::fraction_bits - From::fraction_bits;
            payload = To::quiet;
            if constexpr (wider >= 0)
                payload |= fraction << wider;
            else
                payload |= fraction >> -wider;
        }
        return static_cast<typename To::Bits>(sign | To::infinity | payload);
    }
    if (stored_exponent == 0 && fraction == 0)
        return static_cast<typename To::Bits>(sign);
    // The leading one at bit 63, and the exponent of what it stands for.
    std::uint64_t significand = fraction << (63 - From::fraction_bits);
    int exponent = static_cast<int>(stored_exponent) - From::bias;
    if (stored_exponent != 0) {
        significand |= std::uint64_t{1} << 63;
    } else {
        const int zeros = std::countl_zero(significand);
        significand <<= zeros;
        exponent = 1 - From::bias - zeros;
    }
    const int target = exponent + To::bias;
    if (target >= static_cast<int>(To::top_exponent))
        return static_cast<typename To::Bits>(sign | To::infinity);
    constexpr int shift = 63 - To::fraction_bits;
    // A carry out of the fraction raises the exponent, to infinity at last, as the formats are ordered.
    const std::uint64_t magnitude =
        target > 0 ? (static_cast<std::uint64_t>(target - 1) << To::fraction_bits) +
                         round_off(significand, shift)
                   : round_off(significand, shift + 1 - target);
    return static_cast<typename To::Bits>(sign | magnitude);
}

// The common pair: nothing but an addition, which compilers do for several elements at once.
template <>
std::uint16_t convert_one<BF16, F32>(std::uint32_t bits) {
    const std::uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);
    const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
    return static_cast<std::uint16_t>((is_nan ? bits | 0x400000 : rounded) >> 16);
}

template <typename Bits>
Bits load(const std::byte* from) {
    Bits bits;
    std::memcpy(&bits, from, sizeof bits);
    return bits;
}

template <typename To, typename From>
std::uint64_t convert_all(std::byte* to, const std::byte* from, std::size_t count) {
    using ToBits = typename To::Bits;
    using FromBits = typename From::Bits;
    std::uint64_t lost = 0;
    const auto convert = [&](std::size_t i) {
        const auto in = load<FromBits>(from + i * sizeof(FromBits));
        const auto out = convert_one<To, From>(in);
        const bool finite =
            ((in >> From::fraction_bits) & From::top_exponent) != From::top_exponent;
        const std::uint64_t magnitude = out & ((std::uint64_t{1} << To::sign_place) - 1);
        lost += finite && magnitude == To::infinity ? 1 : 0;
        std::memcpy(to + i * sizeof(ToBits), &out, sizeof out);
    };
    if constexpr (sizeof(ToBits) > sizeof(FromBits))
        for (std::size_t i = count; i-- > 0;)
            convert(i);
    else
        for (std::size_t i = 0; i < count; ++i)
            convert(i);
    return lost;
}

template <typename From>
std::uint64_t convert_from(std::byte* to, Dtype to_dtype, const std::byte* from,
                           std::size_t count) {
    switch (to_dtype) {
    case Dtype::f16: return convert_all<F16, From>(to, from, count);
    case Dtype::bf16: return convert_all<BF16, From>(to, from, count);
    case Dtype::f32: return convert_all<F32, From>(to, from, count);
    default: SAFERING_ASSERT(to_dtype == Dtype::f64);
    }
    return convert_all<F64, From>(to, from, count);
}

} // namespace

bool is_plain_float(Dtype dtype) {
    return dtype == Dtype::f16 || dtype == Dtype::bf16 || dtype == Dtype::f32 ||
           dtype == Dtype::f64;
}

std::uint64_t convert_floats(std::byte* to, Dtype to_dtype, const std::byte* from, Dtype from_dtype,
                             std::size_t count) {
    switch (from_dtype) {
    case Dtype::f16: return convert_from<F16>(to, to_dtype, from, count);
    case Dtype::bf16: return convert_from<BF16>(to, to_dtype, from, count);
    case Dtype::f32: return convert_from<F32>(to, to_dtype, from, count);
    default: SAFERING_ASSERT(from_dtype == Dtype::f64);
    }
    return convert_from<F64>(to, to_dtype, from, count);
}

} // namespace safering::plan
