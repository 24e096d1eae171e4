#include <set>

#include <gtest/gtest.h>

#include <safering/dtype.hpp>
#include <safering/tensor.hpp>

namespace safering {
namespace {

std::vector<Dtype> all_dtypes() {
    std::vector<Dtype> all;
    for (std::size_t i = 0; i < dtype_count; ++i)
        all.push_back(static_cast<Dtype>(i));
    return all;
}

TEST(Dtype, NamesRoundTripAndDiffer) {
    std::set<std::string_view> names;
    for (const Dtype dtype : all_dtypes()) {
        EXPECT_EQ(parse_dtype(name(dtype)), dtype);
        EXPECT_TRUE(names.insert(name(dtype)).second) << name(dtype);
    }
}

TEST(Dtype, NamesAndBitsAreThoseOfTheFormat) {
    const std::pair<const char*, unsigned> expected[] = {
        {"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
        {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
        {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
        {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
        {"I64", 64},        {"U64", 64}};
    ASSERT_EQ(std::size(expected), dtype_count);
    for (const auto& [text, width] : expected) {
        const std::optional<Dtype> dtype = parse_dtype(text);
        ASSERT_TRUE(dtype) << text;
        EXPECT_EQ(bits(*dtype), width) << text;
    }
}

TEST(Dtype, NamesAreExact) {
    for (const char* text : {"", "f32", "F32 ", " F32", "F3", "F322", "F128", "bool", "F8_E4M3FN"})
        EXPECT_EQ(parse_dtype(text), std::nullopt) << text;
    EXPECT_EQ(parse_dtype(std::string_view("U8\0", 3)), std::nullopt);
}

Result<std::uint64_t> size_of(Dtype dtype, std::initializer_list<std::uint64_t> shape) {
    return byte_size(dtype, {shape.begin(), shape.size()});
}

TEST(ByteSize, MultipliesTheDimensions) {
    for (const Dtype dtype : all_dtypes()) {
        EXPECT_EQ(size_of(dtype, {2, 3, 4}), 3 * bits(dtype)) << name(dtype);
        EXPECT_EQ(size_of(dtype, {0}), 0U) << name(dtype);
        EXPECT_EQ(size_of(dtype, {3, 0, 5}), 0U) << name(dtype);
        EXPECT_EQ(size_of(dtype, {8}), bits(dtype)) << name(dtype);
    }
}

void expect_error(Dtype dtype, std::initializer_list<std::uint64_t> shape, Errc code) {
    const Result<std::uint64_t> size = size_of(dtype, shape);
    ASSERT_FALSE(size) << *size;
    EXPECT_EQ(size.error().code, code);
    EXPECT_FALSE(size.error().detail.empty());
}

TEST(ByteSize, AScalarIsOneElement) {
    EXPECT_EQ(size_of(Dtype::boolean, {}), 1U);
    EXPECT_EQ(size_of(Dtype::bf16, {}), 2U);
    EXPECT_EQ(size_of(Dtype::c64, {}), 8U);
}

TEST(ByteSize, RefusesPartsOfBytes) {
    expect_error(Dtype::f4, {}, Errc::header_partial_byte);
    expect_error(Dtype::f4, {3, 5}, Errc::header_partial_byte);
    expect_error(Dtype::f6_e2m3, {2}, Errc::header_partial_byte);
    expect_error(Dtype::f6_e3m2, {3, 2}, Errc::header_partial_byte);
    EXPECT_EQ(size_of(Dtype::f4, {3, 2}), 3U);
    EXPECT_EQ(size_of(Dtype::f6_e2m3, {2, 2}), 3U);
}

TEST(ByteSize, ReachesTheLast64BitValueAndNoFurther) {
    constexpr std::uint64_t most = ~std::uint64_t{0};
    EXPECT_EQ(size_of(Dtype::u8, {most}), most);
    EXPECT_EQ(size_of(Dtype::u8, {1, most, 1}), most);
    EXPECT_EQ(size_of(Dtype::f4, {most - 1}), most / 2);
    EXPECT_EQ(size_of(Dtype::f64, {most / 8}), most / 8 * 8);
    expect_error(Dtype::f64, {most / 8 + 1}, Errc::header_size_overflow);
    expect_error(Dtype::u16, {most}, Errc::header_size_overflow);
    expect_error(Dtype::u8, {most, 2}, Errc::header_size_overflow);
    expect_error(Dtype::u8, {1UL << 32, 1UL << 32}, Errc::header_size_overflow);
}

TEST(ByteSize, RefusesOverflowWhereverAZeroStands) {
    constexpr std::uint64_t half = 1UL << 32;
    expect_error(Dtype::u8, {0, half, half}, Errc::header_size_overflow);
    expect_error(Dtype::u8, {half, 0, half}, Errc::header_size_overflow);
    expect_error(Dtype::u8, {half, half, 0}, Errc::header_size_overflow);
    expect_error(Dtype::f64, {0, 1UL << 61}, Errc::header_size_overflow);
    EXPECT_EQ(size_of(Dtype::f64, {0, (1UL << 61) - 1}), 0U);
}

TEST(ContiguousStrides, AreRowMajor) {
    EXPECT_EQ(contiguous_strides({}), Strides());
    EXPECT_EQ(contiguous_strides({5}), Strides({1}));
    EXPECT_EQ(contiguous_strides({2, 3, 4, 5, 6}), Strides({360, 120, 30, 6, 1}));
}

TEST(ContiguousStrides, CountAZeroDimensionAsOne) {
    EXPECT_EQ(contiguous_strides({2, 0, 3}), Strides({3, 3, 1}));
}

} // namespace
} // namespace safering
