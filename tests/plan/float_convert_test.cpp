// Conversions between floating dtypes, against arithmetic on doubles: every value of the 16-bit dtypes, and of the
// wider ones every exponent with the fractions around which rounding turns.
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "plan/float_convert.hpp"

namespace safering::plan {
namespace {

struct Facts {
    Dtype dtype;
    std::size_t bytes;
    int fraction_bits;
    int least_exponent; // of a normal number
    int most_exponent;
};
constexpr Facts f16{Dtype::f16, 2, 10, -14, 15};
constexpr Facts bf16{Dtype::bf16, 2, 7, -126, 127};
constexpr Facts f32{Dtype::f32, 4, 23, -126, 127};
constexpr Facts f64{Dtype::f64, 8, 52, -1022, 1023};

// What the bits stand for, by the definition of the format.
double value_of(const Facts& facts, std::uint64_t bits) {
    if (facts.bytes == 8) {
        double out;
        std::memcpy(&out, &bits, sizeof out);
        return out;
    }
    const int sign_place = static_cast<int>(8 * facts.bytes) - 1;
    const double sign = (bits >> sign_place) != 0 ? -1 : 1;
    const std::uint64_t magnitude = bits & ((std::uint64_t{1} << sign_place) - 1);
    const auto fraction =
        static_cast<double>(magnitude & ((std::uint64_t{1} << facts.fraction_bits) - 1));
    const int exponent = static_cast<int>(magnitude >> facts.fraction_bits);
    if (exponent == facts.most_exponent - facts.least_exponent + 2)
        return fraction != 0 ? std::numeric_limits<double>::quiet_NaN()
                             : sign * std::numeric_limits<double>::infinity();
    const double one = exponent == 0 ? 0 : std::ldexp(1.0, facts.fraction_bits);
    const int power = facts.least_exponent + std::max(exponent, 1) - 1 - facts.fraction_bits;
    return sign * std::ldexp(one + fraction, power);
}

// The nearest value of a format narrower than double. Everything here is exact but nearbyint, which rounds ties to even.
double nearest(const Facts& facts, double value) {
    if (value == 0 || !std::isfinite(value) || facts.bytes == 8)
        return value;
    const int exponent = std::max(std::ilogb(value), facts.least_exponent) - facts.fraction_bits;
    const double rounded = std::ldexp(std::nearbyint(std::ldexp(value, -exponent)), exponent);
    const double most = std::ldexp(2 - std::ldexp(1.0, -facts.fraction_bits), facts.most_exponent);
    return std::abs(rounded) > most ? std::copysign(std::numeric_limits<double>::infinity(), value)
                                    : rounded;
}

class FloatConvert : public testing::Test {
  protected:
    // All at once, as the loops may work on several elements together.
    void expect_right(const Facts& from, const Facts& to, const std::vector<std::uint64_t>& words) {
        std::vector<std::byte> memory(words.size() * std::max(from.bytes, to.bytes));
        for (std::size_t i = 0; i < words.size(); ++i)
            std::memcpy(memory.data() + i * from.bytes, &words[i], from.bytes);
        std::vector<std::byte> apart(words.size() * to.bytes);
        const std::uint64_t lost =
            convert_floats(apart.data(), to.dtype, memory.data(), from.dtype, words.size());
        std::uint64_t expected_lost = 0;
        for (std::size_t i = 0; i < words.size(); ++i) {
            std::uint64_t bits = 0;
            std::memcpy(&bits, apart.data() + i * to.bytes, to.bytes);
            const double value = value_of(from, words[i]);
            const double expected = nearest(to, value);
            const double found = value_of(to, bits);
            expected_lost += std::isfinite(value) && !std::isfinite(expected) ? 1 : 0;
            const bool sign = ((words[i] >> (8 * from.bytes - 1)) & 1) != 0;
            const bool same_sign = ((bits >> (8 * to.bytes - 1)) & 1) == (sign ? 1 : 0);
            if (std::isnan(expected) ? !std::isnan(found) || !same_sign
                                     : found != expected || !same_sign)
                FAIL() << name(from.dtype) << " to " << name(to.dtype) << ": bits " << std::hex
                       << words[i] << " became " << bits << ", expected " << expected << ", found "
                       << found;
        }
        EXPECT_EQ(lost, expected_lost);
        EXPECT_EQ(convert_floats(memory.data(), to.dtype, memory.data(), from.dtype, words.size()),
                  lost);
        EXPECT_TRUE(std::equal(apart.begin(), apart.end(), memory.begin())) << "in place";
    }
};

TEST_F(FloatConvert, EveryValueOf16Bits) {
    std::vector<std::uint64_t> words(1 << 16);
    for (std::size_t i = 0; i < words.size(); ++i)
        words[i] = i;
    for (const Facts& from : {f16, bf16})
        for (const Facts& to : {f16, bf16, f32, f64})
            expect_right(from, to, words);
}

TEST_F(FloatConvert, EveryExponentOfTheWiderOnesAroundTheTies) {
    for (const Facts& from : {f32, f64}) {
        std::vector<std::uint64_t> words;
        const std::uint64_t exponents =
            std::uint64_t{1} << (8 * from.bytes - 1 - static_cast<unsigned>(from.fraction_bits));
        const std::uint64_t fractions = std::uint64_t{1} << from.fraction_bits;
        std::vector<std::uint64_t> interesting;
        // Halves of the last place of every narrower format, denormal ones too, and what is next to them.
        for (int bit = 0; bit < from.fraction_bits; ++bit)
            for (const std::uint64_t upper :
                 {std::uint64_t{0}, std::uint64_t{2} << bit, ~std::uint64_t{0} << bit})
                for (const std::uint64_t off :
                     {std::uint64_t{0}, std::uint64_t{1}, ~std::uint64_t{0}})
                    interesting.push_back(((upper | (std::uint64_t{1} << bit)) + off) &
                                          (fractions - 1));
        for (std::uint64_t exponent = 0; exponent < exponents; ++exponent) {
            // Of doubles, those that are beyond all others on both sides are alike.
            if (from.bytes == 8 && (exponent < 850 || exponent > 1160) && exponent % 50 != 0 &&
                exponent != exponents - 1)
                continue;
            for (const std::uint64_t fraction : interesting)
                for (const std::uint64_t sign : {0, 1})
                    words.push_back((sign << (8 * from.bytes - 1)) |
                                    (exponent << from.fraction_bits) | fraction);
        }
        for (const Facts& to : {f16, bf16, f32, f64})
            expect_right(from, to, words);
    }
}

TEST_F(FloatConvert, RandomBits) {
    std::mt19937_64 random(7);
    std::vector<std::uint64_t> words(200'003);
    for (const Facts& from : {f32, f64}) {
        for (std::uint64_t& word : words)
            word = from.bytes == 4 ? random() >> 32 : random();
        for (const Facts& to : {f16, bf16, f32, f64})
            expect_right(from, to, words);
    }
}

TEST_F(FloatConvert, KeepsTheTopOfANaNsPayload) {
    const auto converted = [](const Facts& to, std::uint64_t bits, const Facts& from) {
        std::uint64_t out = 0;
        convert_floats(reinterpret_cast<std::byte*>(&out), to.dtype,
                       reinterpret_cast<const std::byte*>(&bits), from.dtype, 1);
        return out;
    };
    EXPECT_EQ(converted(bf16, 0xffa00001, f32), 0xffe0u);
    EXPECT_EQ(converted(bf16, 0x7f800001, f32), 0x7fc0u); // nothing fits; a NaN all the same
    EXPECT_EQ(converted(f16, 0x7f800001, f32), 0x7e00u);
    EXPECT_EQ(converted(f32, 0x7fe1, bf16), 0x7fe10000u);
    EXPECT_EQ(converted(f64, 0xfe01, f16), 0xfff8040000000000u);
}

TEST_F(FloatConvert, TakesPlainFloatsOnly) {
    std::size_t plain = 0;
    for (std::size_t i = 0; i < dtype_count; ++i)
        plain += is_plain_float(static_cast<Dtype>(i)) ? 1 : 0;
    EXPECT_EQ(plain, 4u);
}

} // namespace
} // namespace safering::plan
