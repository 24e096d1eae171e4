#include <gtest/gtest.h>

#include <safering/error.hpp>

#include "utf8.hpp"

namespace safering {
namespace {

TEST(Escaped, LeavesPlainTextAlone) {
    EXPECT_EQ(escaped(""), "");
    EXPECT_EQ(escaped("model.layers.0/weight"), "model.layers.0/weight");
    EXPECT_EQ(escaped("\xC3\xA4\xE2\x82\xAC\xF0\x9F\x98\x80"),
              "\xC3\xA4\xE2\x82\xAC\xF0\x9F\x98\x80");
}

TEST(Escaped, EscapesWhatWouldDisturbALine) {
    EXPECT_EQ(escaped("a\nb\tc"), "a\\x0ab\\x09c");
    EXPECT_EQ(escaped(std::string_view("\0\x1B\x7F", 3)), "\\x00\\x1b\\x7f");
    EXPECT_EQ(escaped("\"\\"), "\\\"\\\\");
    EXPECT_EQ(escaped("\xC2\x85"), "\\u0085");
}

TEST(Escaped, ShowsBytesThatAreNotUtf8) {
    EXPECT_EQ(escaped("a\xFF"), "a\\xff");
    EXPECT_EQ(escaped("\xC3"), "\\xc3");
    EXPECT_EQ(escaped("\xED\xA0\x80"), "\\xed\\xa0\\x80");
    EXPECT_EQ(escaped("\xC0\xAF"), "\\xc0\\xaf");
}

TEST(Escaped, ShortensLongText) {
    EXPECT_EQ(escaped(std::string(200, 'a')), std::string(200, 'a'));
    EXPECT_EQ(escaped(std::string(201, 'a')), std::string(200, 'a') + "... (201 bytes)");
    const std::string cut_inside_a_sequence = std::string(199, 'a') + "\xC3\xA4";
    EXPECT_EQ(escaped(cut_inside_a_sequence), cut_inside_a_sequence);
}

TEST(ErrorMessage, NamesEverythingThatIsKnown) {
    const Error error{.code = Errc::header_hole,
                      .operation = "parse header",
                      .file = "m\n.safetensors",
                      .tensor = "a\"b",
                      .offset = 8,
                      .length = 4,
                      .detail = "expected 1, found 2"};
    EXPECT_EQ(error.message(),
              "parse header m\\x0a.safetensors, bytes 8-12, tensor \"a\\\"b\": hole "
              "between tensors: expected 1, found 2");
}

TEST(ErrorMessage, LeavesOutWhatIsNotKnown) {
    const Error error{.code = std::make_error_code(std::errc::no_space_on_device),
                      .operation = "write"};
    EXPECT_EQ(error.message(), "write: " + error.code.message());
    EXPECT_EQ(Error{.code = Errc::header_empty}.message(), "safering: header length is 0");
}

TEST(Errc, EveryCodeHasWordsOfItsOwn) {
    const auto check = [](Errc first, Errc last) {
        for (int code = static_cast<int>(first); code <= static_cast<int>(last); ++code) {
            const std::error_code error = static_cast<Errc>(code);
            EXPECT_NE(error.message(), "unknown safering error") << code;
            EXPECT_EQ(error.category(), safering_category());
        }
    };
    check(Errc::header_truncated, Errc::header_rank_too_high);
    check(Errc::plan_hole, Errc::plan_not_prepared);
    check(Errc::checkpoint_not_found, Errc::checkpoint_over_budget);
    check(Errc::io_no_progress, Errc::io_peer_lost);
    check(Errc::save_superseded, Errc::save_superseded);
    EXPECT_EQ(std::error_code(static_cast<Errc>(9999)).message(), "unknown safering error");
}

TEST(Exception, CarriesItsError) {
    const Result<int> result = fail(Errc::header_empty, "parse header", "expected 2, found 0");
    try {
        value_or_throw(result);
        FAIL() << "expected an exception";
    } catch (const Exception& exception) {
        EXPECT_EQ(exception.code(), Errc::header_empty);
        EXPECT_EQ(exception.error().detail, "expected 2, found 0");
        EXPECT_NE(std::string(exception.what()).find(result.error().message()), std::string::npos);
    }
    EXPECT_EQ(value_or_throw(Result<int>(7)), 7);
}

TEST(Utf8, EveryCodePointAndNoSurrogate) {
    for (std::uint32_t point = 0x10000; point < 0x110000; point += 0x3FF) {
        const std::string text{static_cast<char>(0xF0 | point >> 18),
                               static_cast<char>(0x80 | (point >> 12 & 0x3F)),
                               static_cast<char>(0x80 | (point >> 6 & 0x3F)),
                               static_cast<char>(0x80 | (point & 0x3F))};
        EXPECT_EQ(utf8_length(text), 4U) << point;
    }
    for (std::uint32_t point = 0x800; point < 0x10000; ++point) {
        const std::string text{static_cast<char>(0xE0 | point >> 12),
                               static_cast<char>(0x80 | (point >> 6 & 0x3F)),
                               static_cast<char>(0x80 | (point & 0x3F))};
        EXPECT_EQ(utf8_length(text), point >= 0xD800 && point < 0xE000 ? 0U : 3U) << point;
    }
}

TEST(Utf8, FindsTheFirstBadByteAtEveryPlace) {
    EXPECT_EQ(find_invalid_utf8(""), std::string_view::npos);
    for (std::size_t at = 0; at < 40; ++at) {
        std::string text(40, 'a');
        EXPECT_EQ(find_invalid_utf8(text), std::string_view::npos);
        text[at] = '\xFF';
        EXPECT_EQ(find_invalid_utf8(text), at);
        EXPECT_EQ(find_invalid_utf8(std::string(at, 'a') + "\xC3\xA4" + "a"),
                  std::string_view::npos);
        EXPECT_EQ(find_invalid_utf8(std::string(at, 'a') + "\xC3"), at);
    }
}

} // namespace
} // namespace safering
