#include <set>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "../changed_text.hpp"
#include "entries.hpp"
#include "safetensors/header.hpp"
#include "utf8.hpp"

namespace safering::safetensors {
namespace {

using Metadata = std::vector<std::pair<std::string, std::string>>;

std::string utf8(char32_t point) {
    const auto byte = [](char32_t value) { return static_cast<char>(value); };
    if (point < 0x80)
        return {byte(point)};
    if (point < 0x800)
        return {byte(0xC0 | point >> 6), byte(0x80 | (point & 0x3F))};
    if (point < 0x10000)
        return {byte(0xE0 | point >> 12), byte(0x80 | (point >> 6 & 0x3F)),
                byte(0x80 | (point & 0x3F))};
    return {byte(0xF0 | point >> 18), byte(0x80 | (point >> 12 & 0x3F)),
            byte(0x80 | (point >> 6 & 0x3F)), byte(0x80 | (point & 0x3F))};
}

// Valid UTF-8 of any code points, rich in those that JSON escapes.
rc::Gen<std::string> texts() {
    const auto points = rc::gen::oneOf(rc::gen::inRange<std::uint32_t>(0, 0x80),
                                       rc::gen::inRange<std::uint32_t>(0x80, 0xD800),
                                       rc::gen::inRange<std::uint32_t>(0xE000, 0x110000),
                                       rc::gen::element<std::uint32_t>('"', '\\', '/', '{'));
    return rc::gen::map(rc::gen::container<std::vector<std::uint32_t>>(points),
                        [](const std::vector<std::uint32_t>& all) {
                            std::string text;
                            for (const std::uint32_t point : all)
                                text += utf8(point);
                            return text;
                        });
}

rc::Gen<TensorEntry> entries() {
    return rc::gen::exec([] {
        TensorEntry entry;
        entry.name = *texts();
        entry.dtype = static_cast<Dtype>(*rc::gen::inRange<std::size_t>(0, dtype_count));
        const auto extents = *rc::gen::container<std::vector<std::uint64_t>>(
            *rc::gen::inRange<std::size_t>(0, 4),
            rc::gen::oneOf(rc::gen::inRange<std::uint64_t>(0, 9),
                           rc::gen::just<std::uint64_t>(4096)));
        entry.shape.assign(extents.begin(), extents.end());
        // Whole bytes for the 4- and 6-bit types.
        entry.shape.push_back(4);
        return entry;
    });
}

rc::Gen<std::vector<TensorEntry>> tables() {
    return rc::gen::uniqueBy<std::vector<TensorEntry>>(
        rc::gen::suchThat(entries(),
                          [](const TensorEntry& entry) { return entry.name != "__metadata__"; }),
        [](const TensorEntry& entry) { return entry.name; });
}

rc::Gen<Metadata> metadatas() {
    return rc::gen::uniqueBy<Metadata>(rc::gen::pair(texts(), texts()),
                                       [](const auto& entry) { return entry.first; });
}

std::uint64_t data_bytes_of(const std::vector<TensorEntry>& tensors) {
    return tensors.empty() ? 0 : tensors.back().data.end;
}

void check_invariant(const Header& header, std::uint64_t file_bytes) {
    std::uint64_t at = 0;
    std::set<std::string> names;
    for (const TensorEntry& tensor : header.tensors) {
        RC_ASSERT(tensor.data.begin == at);
        RC_ASSERT(tensor.data.begin <= tensor.data.end);
        const std::uint64_t bytes =
            value_or_throw(byte_size(tensor.dtype, {tensor.shape.data(), tensor.shape.size()}));
        RC_ASSERT(bytes == tensor.data.size());
        RC_ASSERT(find_invalid_utf8(tensor.name) == std::string::npos);
        RC_ASSERT(names.insert(tensor.name.str()).second);
        at = tensor.data.end;
    }
    RC_ASSERT(header.data_begin + at == file_bytes);
}

// An escape in a key makes no difference but to the way that the text is read.
RC_GTEST_PROP(HeaderProperty, TheQuickWayReadsWhatTheLongWayReads, ()) {
    std::vector<TensorEntry> tensors = *rc::gen::nonEmpty(tables());
    RC_ASSERT(assign_offsets(tensors).has_value());
    const std::string head = value_or_throw(write_entries(tensors, *metadatas(), 8));
    const std::string plain = head.substr(8);
    std::string escaped_key = plain;
    constexpr std::string_view key = "\"dtype\":";
    escaped_key.replace(plain.find(key), key.size(), "\"dtyp\\u0065\":");
    const std::uint64_t data_bytes = tensors.back().data.end;
    const auto quick = parse_header(plain, 8 + plain.size() + data_bytes, "f");
    auto longer = parse_header(escaped_key, 8 + escaped_key.size() + data_bytes, "f");
    RC_ASSERT(quick.has_value());
    RC_ASSERT(longer.has_value());
    longer->data_begin = quick->data_begin;
    RC_ASSERT(*quick == *longer);
}

// A field that nobody knows leads past the quick way.
TEST(HeaderChange, TheQuickWayTakesNothingThatTheLongWayRefuses) {
    std::vector<TensorEntry> tensors{
        {.name = "a", .dtype = Dtype::f32, .shape = {2, 3}, .data = {}},
        {.name = "bc", .dtype = Dtype::u8, .shape = {}, .data = {}}};
    ASSERT_TRUE(assign_offsets(tensors));
    const std::string head = value_or_throw(write_entries(tensors, {{"format", "pt"}}, 8));
    const auto read = [&](const std::string& text) {
        auto header = parse_header(text, 8 + text.size() + tensors.back().data.end, "f");
        if (header)
            header->data_begin = 0;
        return header;
    };
    std::size_t taken = 0;
    test::for_each_change(head.substr(8, head.rfind("}}") - 8), [&](const std::string& changed) {
        const auto quick = read(changed + "}}");
        const auto longer = read(changed + R"(,"more":0}})");
        EXPECT_TRUE(test::same(quick, longer)) << changed;
        taken += quick.has_value() ? 1 : 0;
    });
    EXPECT_GT(taken, 20u); // other names and metadata
}

RC_GTEST_PROP(HeaderProperty, WhatIsWrittenIsReadBack, ()) {
    std::vector<TensorEntry> tensors = *tables();
    const Metadata metadata = *metadatas();
    const std::uint64_t alignment = std::uint64_t{1} << *rc::gen::inRange(3, 14);
    RC_ASSERT(assign_offsets(tensors).has_value());
    const Result<std::string> head = write_entries(tensors, metadata, alignment);
    RC_ASSERT(head.has_value());
    RC_ASSERT(head->size() % alignment == 0U);
    const std::uint64_t file_bytes = head->size() + data_bytes_of(tensors);
    const Result<Header> header = parse_head(*head, file_bytes, "f");
    RC_ASSERT(header.has_value());
    RC_ASSERT(header->tensors == tensors);
    RC_ASSERT(header->metadata == metadata);
    RC_ASSERT(header->data_begin == head->size());
    check_invariant(*header, file_bytes);
}

RC_GTEST_PROP(HeaderProperty, OffsetsDependOnTheSetAlone, ()) {
    std::vector<TensorEntry> tensors = *tables();
    std::vector<TensorEntry> reversed(tensors.rbegin(), tensors.rend());
    RC_ASSERT(assign_offsets(tensors).has_value());
    RC_ASSERT(assign_offsets(reversed).has_value());
    RC_ASSERT(tensors == reversed);
    std::vector<TensorEntry> again = tensors;
    RC_ASSERT(assign_offsets(again).has_value());
    RC_ASSERT(again == tensors);
}

RC_GTEST_PROP(HeaderProperty, OffsetsAreAligned, ()) {
    std::vector<TensorEntry> tensors = *tables();
    RC_ASSERT(assign_offsets(tensors).has_value());
    bool whole_pages = true;
    unsigned element_bits = 64;
    for (const TensorEntry& tensor : tensors) {
        const bool is_whole = tensor.data.size() % 4096 == 0;
        RC_ASSERT(whole_pages || !is_whole);
        whole_pages = is_whole;
        if (is_whole) {
            RC_ASSERT(tensor.data.begin % 4096 == 0U);
            continue;
        }
        RC_ASSERT(bits(tensor.dtype) <= element_bits);
        element_bits = bits(tensor.dtype);
        if (element_bits >= 8)
            RC_ASSERT(tensor.data.begin % (element_bits / 8) == 0U);
    }
}

// As a file cut short, and as a text cut short in a file that is long enough.
void check_prefix(const std::string& head, std::size_t size, std::uint64_t data_bytes) {
    RC_ASSERT(!parse_head(std::string_view(head).substr(0, size), size, "f").has_value());
    const std::size_t closing = head.find_last_of('}');
    if (size > 8 && size <= closing)
        RC_ASSERT(!parse_header(std::string_view(head).substr(8, size - 8), size + data_bytes, "f")
                       .has_value());
}

RC_GTEST_PROP(HeaderProperty, PrefixesAreRejected, ()) {
    std::vector<TensorEntry> tensors = *rc::gen::nonEmpty(tables());
    RC_ASSERT(assign_offsets(tensors).has_value());
    const std::string head = value_or_throw(write_entries(tensors, *metadatas(), 8));
    for (int i = 0; i < 20; ++i)
        check_prefix(head, *rc::gen::inRange<std::size_t>(0, head.size()), data_bytes_of(tensors));
}

TEST(HeaderPrefix, EveryOneIsRejected) {
    std::vector<TensorEntry> tensors{
        {.name = "a\n\xC3\xA4", .dtype = Dtype::f4, .shape = {2, 3}, .data = {}},
        {.name = "b", .dtype = Dtype::u64, .shape = {}, .data = {}},
        {.name = "", .dtype = Dtype::i8, .shape = {0}, .data = {}}};
    ASSERT_TRUE(assign_offsets(tensors));
    const std::string head = value_or_throw(write_entries(tensors, {{"format", "pt"}}, 8));
    const std::uint64_t data_bytes = data_bytes_of(tensors);
    ASSERT_TRUE(parse_head(head, head.size() + data_bytes, "f"));
    for (std::size_t size = 0; size < head.size(); ++size) {
        const std::string_view cut = std::string_view(head).substr(0, size);
        EXPECT_FALSE(parse_head(cut, size, "f")) << size;
        if (size > 8 && size <= head.find_last_of('}')) {
            EXPECT_FALSE(parse_header(cut.substr(8), size + data_bytes, "f")) << size;
        }
    }
}

// Replaces, inserts, removes or repeats a piece of `text`.
std::string mutated(std::string text) {
    const std::size_t at = *rc::gen::inRange<std::size_t>(0, text.size());
    const std::size_t length = std::min(*rc::gen::inRange<std::size_t>(1, 12), text.size() - at);
    static const std::vector<std::string> pieces{"0",
                                                 "1",
                                                 "9",
                                                 "-",
                                                 "\"",
                                                 "{",
                                                 "}",
                                                 "[",
                                                 "]",
                                                 ",",
                                                 ":",
                                                 "\\",
                                                 "\\u0000",
                                                 " ",
                                                 "null",
                                                 "\"dtype\":",
                                                 "\"U8\"",
                                                 "\"__metadata__\":",
                                                 "{}",
                                                 "[]",
                                                 "18446744073709551615",
                                                 "1e5",
                                                 "\xFF",
                                                 "\xC3\xA4",
                                                 std::string(1, '\0')};
    const std::string piece =
        *rc::gen::oneOf(rc::gen::elementOf(pieces), rc::gen::just(text.substr(at, length)),
                        rc::gen::map(rc::gen::inRange<char>(0x20, 0x7F),
                                     [](char byte) { return std::string(1, byte); }));
    return text.replace(at, *rc::gen::element<std::size_t>(0, 1, piece.size(), length), piece);
}

RC_GTEST_PROP(HeaderProperty, MutationsAreRejectedOrKeepTheInvariant, ()) {
    std::vector<TensorEntry> tensors = *tables();
    RC_ASSERT(assign_offsets(tensors).has_value());
    std::string json = value_or_throw(write_entries(tensors, *metadatas(), 8)).substr(8);
    const int mutations = *rc::gen::inRange(1, 4);
    for (int i = 0; i < mutations && !json.empty(); ++i)
        json = mutated(std::move(json));
    const std::uint64_t file_bytes = 8 + json.size() + data_bytes_of(tensors);
    const Result<Header> header = parse_header(json, file_bytes, "f");
    RC_TAG(header.has_value() ? "accepted" : header.error().code.message());
    if (header)
        check_invariant(*header, file_bytes);
    else
        RC_ASSERT(header.error().file == "f");
}

} // namespace
} // namespace safering::safetensors
