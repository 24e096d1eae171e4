#include <fmt/format.h>
#include <gtest/gtest.h>

#include "entries.hpp"
#include "safetensors/header.hpp"

namespace safering::safetensors {
namespace {

TensorEntry entry(const std::string& name, Dtype dtype, Shape shape) {
    return {.name = name, .dtype = dtype, .shape = std::move(shape), .data = {}};
}

std::vector<std::string> names_of(const std::vector<TensorEntry>& tensors) {
    std::vector<std::string> names;
    for (const TensorEntry& tensor : tensors)
        names.push_back(tensor.name.str());
    return names;
}

std::uint64_t length_of(const std::string& head) {
    return value_or_throw(parse_header_length(head, ~std::uint64_t{0}, "f"));
}

TEST(AssignOffsets, WholePagesThenFallingElementSizeThenNames) {
    std::vector<TensorEntry> tensors{
        entry("f4", Dtype::f4, {2}),         entry("u8.b", Dtype::u8, {1}),
        entry("u8.a", Dtype::i8, {1}),       entry("f6", Dtype::f6_e2m3, {4}),
        entry("page.b", Dtype::u8, {4096}),  entry("f64", Dtype::f64, {1}),
        entry("page.a", Dtype::f32, {2048}), entry("bf16", Dtype::bf16, {3}),
        entry("empty", Dtype::f4, {0, 3}),   entry("f32", Dtype::f32, {}),
    };
    ASSERT_TRUE(assign_offsets(tensors));
    const std::vector<std::string> expected{"empty", "page.a", "page.b", "f64", "f32",
                                            "bf16",  "u8.a",   "u8.b",   "f6",  "f4"};
    EXPECT_EQ(names_of(tensors), expected);
    const std::vector<ByteRange> ranges{
        {0, 0},         {0, 8192},      {8192, 12288},  {12288, 12296}, {12296, 12300},
        {12300, 12306}, {12306, 12307}, {12307, 12308}, {12308, 12311}, {12311, 12312}};
    for (std::size_t i = 0; i < ranges.size(); ++i)
        EXPECT_EQ(tensors[i].data, ranges[i]) << tensors[i].name;
}

void expect_assign_error(std::vector<TensorEntry> tensors, Errc code, const std::string& tensor) {
    const Result<void> assigned = assign_offsets(tensors);
    ASSERT_FALSE(assigned);
    EXPECT_EQ(assigned.error().code, code);
    EXPECT_EQ(assigned.error().tensor, tensor);
}

TEST(AssignOffsets, NamesTheTensorThatCannotBe) {
    expect_assign_error({entry("a", Dtype::u8, {1}), entry("b", Dtype::f4, {3})},
                        Errc::header_partial_byte, "b");
    expect_assign_error({entry("a", Dtype::u8, {1}), entry("b", Dtype::u8, {~0UL, 2})},
                        Errc::header_size_overflow, "b");
    expect_assign_error({entry("a", Dtype::u8, {1}), entry("a", Dtype::f32, {1024})},
                        Errc::header_duplicate_key, "a");
}

TEST(AssignOffsets, RefusesASumPast64Bits) {
    expect_assign_error({entry("a", Dtype::u8, {1UL << 63}), entry("b", Dtype::u8, {1UL << 63})},
                        Errc::header_size_overflow, "b");
}

TEST(WriteHeader, TextIsExact) {
    std::vector<TensorEntry> tensors{entry("b", Dtype::bf16, {2, 3}), entry("a", Dtype::i64, {})};
    ASSERT_TRUE(assign_offsets(tensors));
    const Result<std::string> head = write_entries(tensors, {{"format", "pt"}, {"k", "v"}}, 8);
    ASSERT_TRUE(head);
    const std::string json = R"({"__metadata__":{"format":"pt","k":"v"},)"
                             R"("a":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
                             R"("b":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]}})";
    EXPECT_EQ(head->substr(8, json.size()), json);
    EXPECT_EQ(head->find_first_not_of(' ', 8 + json.size()), std::string::npos);
    EXPECT_EQ(head->size() % 8, 0U);
    EXPECT_EQ(length_of(*head), head->size() - 8);
}

TEST(WriteHeader, PadsToTheAlignment) {
    for (const std::uint64_t alignment : {8UL, 16UL, 512UL, 4096UL, 65536UL}) {
        const Result<std::string> head = write_header({}, {}, alignment);
        ASSERT_TRUE(head);
        EXPECT_EQ(head->size(), std::max<std::uint64_t>(alignment, 16));
        EXPECT_EQ(head->substr(8, 3), "{} ");
        EXPECT_TRUE(parse_head(*head, head->size(), "f"));
    }
    EXPECT_EQ(write_header({}, {})->size(), 4096U);
}

TEST(WriteHeader, AddsNoPageToAFullOne) {
    // {"__metadata__":{"k":"..."}} takes 25 bytes beside the value.
    for (const std::size_t missing : {0UL, 1UL}) {
        const Result<std::string> head =
            write_header({}, {{"k", std::string(4096 - 8 - 25 - missing, 'v')}});
        ASSERT_TRUE(head);
        EXPECT_EQ(head->size(), 4096U);
        EXPECT_EQ(head->back(), missing == 0 ? '}' : ' ');
    }
    EXPECT_EQ(write_header({}, {{"k", std::string(4096 - 8 - 24, 'v')}})->size(), 8192U);
}

TEST(WriteHeader, EscapesWhatJsonNeedsEscaped) {
    std::string every;
    for (int byte = 0; byte < 0x80; ++byte)
        every += static_cast<char>(byte);
    every += "\xC3\xA4\xF0\x9F\x98\x80";
    std::vector<TensorEntry> tensors{entry(every, Dtype::u8, {1}), entry("", Dtype::u8, {1})};
    ASSERT_TRUE(assign_offsets(tensors));
    const std::vector<std::pair<std::string, std::string>> metadata{{every, every}, {"", ""}};
    const Result<std::string> head = write_entries(tensors, metadata);
    ASSERT_TRUE(head);
    for (const char byte : head->substr(8))
        EXPECT_GE(static_cast<unsigned char>(byte), 0x20U);
    const Result<Header> header = parse_head(*head, head->size() + 2, "f");
    ASSERT_TRUE(header) << header.error().message();
    EXPECT_EQ(header->tensors, tensors);
    EXPECT_EQ(header->metadata, metadata);
}

void expect_write_error(const std::vector<TensorEntry>& tensors,
                        const std::vector<std::pair<std::string, std::string>>& metadata,
                        Errc code) {
    const Result<std::string> head = write_entries(tensors, metadata);
    ASSERT_FALSE(head);
    EXPECT_EQ(head.error().code, code) << head.error().message();
    EXPECT_EQ(head.error().operation, "write header");
    EXPECT_FALSE(head.error().detail.empty());
}

TEST(WriteHeader, RefusesWhatNoReaderWouldTake) {
    expect_write_error({entry("__metadata__", Dtype::u8, {0})}, {}, Errc::plan_bad_name);
    expect_write_error({entry("\xFF", Dtype::u8, {0})}, {}, Errc::plan_bad_name);
    expect_write_error({entry("\xED\xA0\x80", Dtype::u8, {0})}, {}, Errc::plan_bad_name);
    expect_write_error({entry(std::string(4097, 'n'), Dtype::u8, {0})}, {},
                       Errc::header_name_too_long);
    expect_write_error({entry("a", Dtype::u8, Shape(65, 0))}, {}, Errc::header_rank_too_high);
    expect_write_error(std::vector<TensorEntry>(1'000'001), {}, Errc::header_too_many_tensors);
    expect_write_error({}, {{"k", "\xC0\x80"}}, Errc::header_not_utf8);
    expect_write_error({}, {{"\xFF", "v"}}, Errc::header_not_utf8);
    expect_write_error({}, {{"k", "1"}, {"k", "2"}}, Errc::header_duplicate_key);
    std::vector<std::pair<std::string, std::string>> many(HeaderLimits{}.metadata_entries + 1);
    for (std::size_t i = 0; i < many.size(); ++i)
        many[i].first = std::to_string(i);
    expect_write_error({}, many, Errc::header_bad_metadata);
    many.pop_back();
    EXPECT_TRUE(write_entries({}, many));
    expect_write_error({}, {{"k", std::string(100'000'000, 'v')}}, Errc::header_too_large);
}

TEST(WriteHeader, TakesTheLargestOfEverything) {
    std::vector<TensorEntry> tensors{entry(std::string(4096, 'n'), Dtype::u8, Shape(64, 1))};
    ASSERT_TRUE(assign_offsets(tensors));
    const Result<std::string> head = write_entries(tensors, {});
    ASSERT_TRUE(head);
    EXPECT_TRUE(parse_head(*head, head->size() + 1, "f"));
}

TEST(WriteHeaderDeathTest, AssertsOnTensorsWithoutOffsets) {
    std::vector<TensorEntry> tensors{entry("a", Dtype::u8, {1})};
    tensors[0].data = {4, 5};
    EXPECT_DEATH(static_cast<void>(write_entries(tensors, {})), "assertion failed");
    EXPECT_DEATH(static_cast<void>(write_header({}, {}, 12)), "assertion failed");
}

TEST(WriteHeader, MillionTensorsRoundTrip) {
    std::vector<TensorEntry> tensors;
    for (std::uint64_t i = 0; i < 1'000'000; ++i)
        tensors.push_back(entry(fmt::format("model.{:06}", i), Dtype::bf16, {i % 7, 3}));
    ASSERT_TRUE(assign_offsets(tensors));
    const Result<std::string> head = write_entries(tensors, {});
    ASSERT_TRUE(head) << head.error().message();
    const Result<Header> header = parse_head(*head, head->size() + tensors.back().data.end, "f");
    ASSERT_TRUE(header) << header.error().message();
    EXPECT_TRUE(header->tensors == tensors);
}

} // namespace
} // namespace safering::safetensors
