#include <fmt/format.h>
#include <gtest/gtest.h>

#include "head.hpp"
#include "header_cases.hpp"
#include "safetensors/header.hpp"

namespace safering::safetensors {
namespace {

const std::string file_name = "dir/model.safetensors";

class HeaderAccepted : public testing::TestWithParam<HeaderCase> {};
class HeaderRejected : public testing::TestWithParam<HeaderCase> {};

std::string case_name(const testing::TestParamInfo<HeaderCase>& info) {
    return info.param.name;
}

TEST_P(HeaderAccepted, KeepsTheInvariant) {
    const std::string& json = GetParam().json;
    const std::uint64_t file_bytes = 8 + json.size() + GetParam().data_bytes;
    const Result<Header> header = parse_header(json, file_bytes, file_name);
    ASSERT_TRUE(header) << header.error().message();
    EXPECT_EQ(header->data_begin, 8 + json.size());
    std::uint64_t at = 0;
    for (const TensorEntry& tensor : header->tensors) {
        EXPECT_EQ(tensor.data.begin, at) << tensor.name;
        EXPECT_EQ(tensor.data.size(),
                  byte_size(tensor.dtype, {tensor.shape.data(), tensor.shape.size()}))
            << tensor.name;
        at = tensor.data.end;
    }
    EXPECT_EQ(at, GetParam().data_bytes);
    const Result<Header> of_head = parse_head(head_of(json), file_bytes, file_name);
    ASSERT_TRUE(of_head);
    EXPECT_TRUE(*of_head == *header);
}

TEST_P(HeaderRejected, NamesFileTensorAndRule) {
    const std::string& json = GetParam().json;
    const std::uint64_t file_bytes = 8 + json.size() + GetParam().data_bytes;
    const Result<Header> header = parse_header(json, file_bytes, file_name);
    ASSERT_FALSE(header);
    const Error& error = header.error();
    EXPECT_EQ(error.code, *GetParam().expected) << error.message();
    EXPECT_EQ(error.operation, "parse header");
    EXPECT_EQ(error.file, file_name);
    EXPECT_EQ(error.tensor, GetParam().tensor);
    EXPECT_FALSE(error.detail.empty());
    // One line, whatever the file says.
    const std::string message = error.message();
    EXPECT_LT(message.size(), 1000U);
    for (const char byte : message)
        EXPECT_GE(static_cast<unsigned char>(byte), 0x20U) << message;
    EXPECT_NE(message.find(file_name), std::string::npos);
    EXPECT_NE(message.find(error.code.message()), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Format, HeaderAccepted, testing::ValuesIn(accepted_cases()), case_name);
INSTANTIATE_TEST_SUITE_P(Format, HeaderRejected, testing::ValuesIn(rejected_cases()), case_name);

Header parsed(const std::string& json, std::uint64_t data_bytes) {
    return value_or_throw(parse_header(json, 8 + json.size() + data_bytes, file_name));
}

TEST(HeaderParse, ReadsEveryValue) {
    const Header header = parsed(R"({"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},)"
                                 R"("__metadata__":{"z":"1","a":"\u00e4"},)"
                                 R"("a":{"dtype":"I32","shape":[],"data_offsets":[0,4]}})",
                                 16);
    const std::vector<TensorEntry> tensors{
        {.name = "a", .dtype = Dtype::i32, .shape = {}, .data = {0, 4}},
        {.name = "b", .dtype = Dtype::bf16, .shape = {2, 3}, .data = {4, 16}}};
    EXPECT_EQ(header.tensors, tensors);
    const std::vector<std::pair<std::string, std::string>> metadata{{"z", "1"}, {"a", "\xC3\xA4"}};
    EXPECT_EQ(header.metadata, metadata);
}

TEST(HeaderParse, DecodesNames) {
    const Header header =
        parsed(R"({"\u0000\/\"\ud83d\ude00":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", 0);
    EXPECT_EQ(header.tensors.at(0).name, std::string("\0/\"\xF0\x9F\x98\x80", 7));
}

TEST(HeaderParse, KeepsTheTextOrderOfEmptyTensors) {
    const Header header = parsed(R"({"z":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                                 R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})",
                                 0);
    EXPECT_EQ(header.tensors.at(0).name, "z");
    EXPECT_EQ(header.tensors.at(1).name, "a");
}

std::error_code code_of_head(const std::string& head, std::uint64_t file_bytes) {
    const Result<Header> header = parse_head(head, file_bytes, file_name);
    if (header)
        return {};
    EXPECT_EQ(header.error().operation, "parse header");
    EXPECT_EQ(header.error().file, file_name);
    EXPECT_FALSE(header.error().detail.empty());
    return header.error().code;
}

TEST(HeaderLength, RejectsFilesOfLessThan8Bytes) {
    for (std::size_t size = 0; size < 8; ++size)
        EXPECT_EQ(code_of_head(std::string(size, '\x01'), size), Errc::header_truncated) << size;
}

TEST(HeaderLength, RejectsZero) {
    EXPECT_EQ(code_of_head(with_length(0), 8), Errc::header_empty);
    EXPECT_EQ(code_of_head(with_length(0, "{}"), 10), Errc::header_empty);
}

TEST(HeaderLength, RejectsMoreThanTheCap) {
    constexpr std::uint64_t unbounded = ~std::uint64_t{0};
    for (const std::uint64_t length :
         {std::uint64_t{100'000'001}, (std::uint64_t{1} << 63) - 1, std::uint64_t{1} << 63,
          (std::uint64_t{1} << 63) + 1, unbounded - 8, unbounded - 7, unbounded})
        for (const std::uint64_t file_bytes : {std::uint64_t{8}, unbounded})
            EXPECT_EQ(code_of_head(with_length(length), file_bytes), Errc::header_too_large)
                << length;
}

TEST(HeaderLength, AcceptsTheCap) {
    EXPECT_EQ(parse_header_length(with_length(100'000'000), 100'000'008, file_name), 100'000'000U);
    EXPECT_EQ(parse_header_length(with_length(1), 9, file_name), 1U);
}

TEST(HeaderLength, RejectsMoreThanTheFile) {
    EXPECT_EQ(code_of_head(with_length(3, "{}"), 10), Errc::header_beyond_file);
    EXPECT_EQ(code_of_head(with_length(100'000'000), 100'000'007), Errc::header_beyond_file);
    EXPECT_EQ(code_of_head(with_length(1), 8), Errc::header_beyond_file);
}

TEST(HeaderLength, RejectsAHeadThatWasNotReadWhole) {
    EXPECT_EQ(code_of_head(with_length(2, "{"), 10), Errc::io_unexpected_end);
}

TEST(HeaderLength, IgnoresDataBehindTheHeader) {
    EXPECT_TRUE(
        parse_head(with_length(61, R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})"
                                   "         {"),
                   70, file_name));
}

TEST(HeaderLength, HoldsForParseHeaderAlone) {
    EXPECT_EQ(parse_header("", 8, file_name).error().code, Errc::header_empty);
    EXPECT_EQ(parse_header("{}", 9, file_name).error().code, Errc::header_beyond_file);
    EXPECT_EQ(parse_header("{}", 0, file_name).error().code, Errc::header_beyond_file);
    EXPECT_EQ(parse_header("{} ", 11, file_name, {.header_bytes = 2}).error().code,
              Errc::header_too_large);
}

TEST(HeaderLimit, Tensors) {
    const std::string json = R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                             R"("__metadata__":{},)"
                             R"("b":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})";
    EXPECT_TRUE(parse_header(json, 8 + json.size(), file_name, {.tensors = 2}));
    const Result<Header> header = parse_header(json, 8 + json.size(), file_name, {.tensors = 1});
    ASSERT_FALSE(header);
    EXPECT_EQ(header.error().code, Errc::header_too_many_tensors);
    EXPECT_EQ(header.error().tensor, "b");
}

TEST(HeaderLimit, MetadataEntries) {
    const std::string json = R"({"__metadata__":{"a":"","b":""}})";
    EXPECT_TRUE(parse_header(json, 8 + json.size(), file_name, {.metadata_entries = 2}));
    const Result<Header> header =
        parse_header(json, 8 + json.size(), file_name, {.metadata_entries = 1});
    ASSERT_FALSE(header);
    EXPECT_EQ(header.error().code, Errc::header_bad_metadata);
}

TEST(HeaderLimit, Depth) {
    const std::string json = R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})";
    EXPECT_TRUE(parse_header(json, 8 + json.size(), file_name, {.depth = 3}));
    EXPECT_EQ(parse_header(json, 8 + json.size(), file_name, {.depth = 2}).error().code,
              Errc::header_too_deep);
}

std::string message_of(const std::string& json, std::uint64_t data_bytes) {
    const Result<Header> header = parse_header(json, 8 + json.size() + data_bytes, file_name);
    return header ? "accepted" : header.error().message();
}

TEST(HeaderMessage, SaysWhatWasExpectedAndFound) {
    EXPECT_EQ(message_of(R"({"w":{"dtype":"U8","shape":[2,-3],"data_offsets":[0,6]}})", 6),
              "parse header dir/model.safetensors, tensor \"w\": shape is not a list of unsigned "
              "64-bit integers: shape[1]: expected an unsigned 64-bit integer, found -3");
    EXPECT_EQ(message_of(R"({"w":{"dtype":"F16","shape":[2],"data_offsets":[0,2]}})", 2),
              "parse header dir/model.safetensors, tensor \"w\": data_offsets disagree with dtype "
              "and shape: expected 4 bytes for the dtype and shape, found [0, 2), 2 bytes");
    EXPECT_EQ(message_of(R"({"w":{"dtype":"F4","shape":[3,1],"data_offsets":[0,2]}})", 2),
              "parse header dir/model.safetensors, tensor \"w\": tensor is not a whole number of "
              "bytes: expected a multiple of 8 bits, found F4 [3, 1] (3 elements of 4 bits)");
}

TEST(HeaderMessage, EscapesNames) {
    EXPECT_EQ(message_of(R"({"a\nb\u0000":1})", 0),
              "parse header dir/model.safetensors, tensor \"a\\x0ab\\x00\": tensor is not an "
              "object: tensor: expected an object of dtype, shape and data_offsets, found 1");
}

TEST(HeaderMessage, NamesTheTensorWithoutAName) {
    EXPECT_NE(message_of(R"({"":1})", 0).find("tensor \"\""), std::string::npos);
}

TEST(HeaderMessage, PlacesSyntaxErrorsInTheFile) {
    EXPECT_EQ(message_of("{a}", 0),
              "parse header dir/model.safetensors, bytes 9-10: header is not valid JSON: syntax "
              "error while parsing object key - invalid literal; last read: '{a'; expected string "
              "literal");
    EXPECT_EQ(message_of(R"({"a" 1})", 0),
              "parse header dir/model.safetensors, bytes 13-14, tensor \"a\": header is not valid "
              "JSON: syntax error while parsing object separator - unexpected number literal; "
              "expected ':'");
    EXPECT_EQ(message_of(std::string("{}\0", 3), 0),
              "parse header dir/model.safetensors, bytes 10-11: text after the end of the header's "
              "object: expected white space, found a NUL byte");
}

std::error_code code_of(const std::string& json, std::uint64_t data_bytes) {
    const Result<Header> header = parse_header(json, 8 + json.size() + data_bytes, file_name);
    return header ? std::error_code() : header.error().code;
}

TEST(HeaderPrecedence, EncodingBeforeSyntax) {
    EXPECT_EQ(code_of("{]\xFF", 0), Errc::header_not_utf8);
}

TEST(HeaderPrecedence, TextOrderWithinTheText) {
    EXPECT_EQ(code_of(R"({"a":1,"b":[})", 0), Errc::header_bad_tensor);
    EXPECT_EQ(code_of(R"({"a":{"dtype":"x","shape":[-1]}})", 0), Errc::header_unknown_dtype);
}

TEST(HeaderPrecedence, SizeBeforeOffsets) {
    EXPECT_EQ(code_of(R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[9,8]}})", 0),
              Errc::header_partial_byte);
}

TEST(HeaderPrecedence, BeyondFileBeforeSizeAndHole) {
    EXPECT_EQ(code_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[5,9]}})", 1),
              Errc::header_offsets_beyond_file);
    EXPECT_EQ(code_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[5,9]}})", 8),
              Errc::header_offsets_beyond_file);
}

TEST(HeaderLarge, OpenBracketsEndAtTheFifth) {
    const std::string json = R"({"a":{"x":)" + std::string(50'000'000, '[');
    EXPECT_EQ(code_of(json, 0), Errc::header_too_deep);
}

TEST(HeaderLarge, MillionKeysInAnUnknownField) {
    std::string json = R"({"a":{)";
    for (int i = 0; i < 1'000'000; ++i)
        json += fmt::format(R"("{:x}":1,)", i);
    EXPECT_EQ(code_of(json + R"("x":1}})", 0), Errc::header_missing_field);
    EXPECT_EQ(code_of(json + R"("0":1}})", 0), Errc::header_duplicate_key);
}

TEST(HeaderLarge, MillionTensorsAndNoMore) {
    std::string json = "{";
    for (int i = 0; i < 1'000'000; ++i)
        json += fmt::format(R"("{:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}},)", i);
    std::string one_more = json + R"("x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})";
    EXPECT_EQ(code_of(one_more, 0), Errc::header_too_many_tensors);
    json.back() = '}';
    const Result<Header> header = parse_header(json, 8 + json.size(), file_name);
    ASSERT_TRUE(header) << header.error().message();
    EXPECT_EQ(header->tensors.size(), 1'000'000U);
}

TEST(HeaderLarge, DigitsWithoutEnd) {
    EXPECT_EQ(code_of(R"({"a":{"shape":[)" + std::string(10'000'000, '9') + "]}}", 0),
              Errc::header_bad_shape);
}

} // namespace
} // namespace safering::safetensors
