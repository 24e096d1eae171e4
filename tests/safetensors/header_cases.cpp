#include "header_cases.hpp"

#include <fmt/format.h>

namespace safering::safetensors {

using namespace std::string_literals;

namespace {

// The braces of a table around members.
std::string table(const std::string& members) {
    return "{" + members + "}";
}

std::string tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                   const std::string& offsets) {
    return fmt::format(R"("{}":{{"dtype":{},"shape":{},"data_offsets":{}}})", name, dtype, shape,
                       offsets);
}

std::string u8(const std::string& name, std::uint64_t begin, std::uint64_t end) {
    return tensor(name, R"("U8")", fmt::format("[{}]", end - begin),
                  fmt::format("[{},{}]", begin, end));
}

std::string metadata(const std::string& value) {
    return R"("__metadata__":)" + value;
}

HeaderCase accept(const std::string& name, const std::string& json, std::uint64_t data_bytes = 0) {
    return {.name = name, .json = json, .data_bytes = data_bytes};
}

HeaderCase reject(Errc expected, const std::string& name, const std::string& json,
                  std::uint64_t data_bytes = 0, const std::string& tensor = {}) {
    return {.name = name,
            .json = json,
            .data_bytes = data_bytes,
            .expected = expected,
            .tensor = tensor};
}

std::string repeated(std::size_t count, const std::string& text) {
    std::string out;
    for (std::size_t i = 0; i < count; ++i)
        out += text;
    return out;
}

void add_dtypes(std::vector<HeaderCase>& cases) {
    struct {
        const char* name;
        std::uint64_t bytes_of_8;
    } const dtypes[] = {{"BOOL", 8},    {"F4", 4},          {"F6_E2M3", 6},     {"F6_E3M2", 6},
                        {"U8", 8},      {"I8", 8},          {"F8_E5M2", 8},     {"F8_E4M3", 8},
                        {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
                        {"U16", 16},    {"F16", 16},        {"BF16", 16},       {"I32", 32},
                        {"U32", 32},    {"F32", 32},        {"C64", 64},        {"F64", 64},
                        {"I64", 64},    {"U64", 64}};
    for (const auto& [name, bytes] : dtypes)
        cases.push_back(accept(
            "dtype_"s + name,
            table(tensor("a", fmt::format("\"{}\"", name), "[2,4]", fmt::format("[0,{}]", bytes))),
            bytes));
}

// Each text in the place of one dimension and of one offset; none is an unsigned 64-bit integer.
void add_bad_integers(std::vector<HeaderCase>& cases) {
    struct {
        const char* name;
        const char* text;
        bool is_json = true;
    } const values[] = {{"negative", "-1"},
                        {"float", "1.0"},
                        {"exponent", "1e0"},
                        {"huge_exponent", "1e999999"},
                        {"negative_huge_exponent", "-1e999999"},
                        {"string", "\"1\""},
                        {"null", "null"},
                        {"bool", "true"},
                        {"nested", "[1]"},
                        {"object", "{}"},
                        {"minus_zero", "-0"},
                        {"above_u64", "18446744073709551616"},
                        {"far_above_u64", "100000000000000000000000000000000000000000"},
                        {"leading_zero", "01", false},
                        {"leading_plus", "+1", false},
                        {"hexadecimal", "0x1", false},
                        {"not_a_number", "NaN", false},
                        {"infinity", "Infinity", false},
                        {"bare_minus", "-", false},
                        {"bare_point", "1.", false}};
    for (const auto& [name, text, is_json] : values) {
        const std::string list = fmt::format("[{}]", text);
        cases.push_back(reject(is_json ? Errc::header_bad_shape : Errc::header_syntax,
                               "shape_"s + name, table(tensor("a", R"("U8")", list, "[0,1]")), 1,
                               "a"));
        cases.push_back(
            reject(is_json ? Errc::header_bad_offsets : Errc::header_syntax, "offsets_"s + name,
                   table(tensor("a", R"("U8")", "[1]", fmt::format("[0,{}]", text))), 1, "a"));
        if (is_json && text[0] != '[')
            cases.push_back(reject(Errc::header_bad_shape, "shape_is_"s + name,
                                   table(tensor("a", R"("U8")", text, "[0,1]")), 1, "a"));
        if (is_json && text[0] != '[')
            cases.push_back(reject(Errc::header_bad_offsets, "offsets_are_"s + name,
                                   table(tensor("a", R"("U8")", "[1]", text)), 1, "a"));
    }
}

void add_bad_dtypes(std::vector<HeaderCase>& cases) {
    const std::pair<const char*, const char*> dtypes[] = {{"unknown", R"("F128")"},
                                                          {"lower_case", R"("f32")"},
                                                          {"empty", R"("")"},
                                                          {"with_space", R"("U8 ")"},
                                                          {"with_nul", R"("U8\u0000")"},
                                                          {"number", "8"},
                                                          {"float", "8.5"},
                                                          {"negative", "-8"},
                                                          {"null", "null"},
                                                          {"bool", "false"},
                                                          {"array", R"(["U8"])"},
                                                          {"object", R"({"U8":1})"}};
    for (const auto& [name, text] : dtypes)
        cases.push_back(reject(Errc::header_unknown_dtype, "dtype_"s + name,
                               table(tensor("a", text, "[1]", "[0,1]")), 1, "a"));
}

void add_bad_utf8(std::vector<HeaderCase>& cases) {
    const std::pair<const char*, const char*> texts[] = {{"lone_continuation", "\x80"},
                                                         {"cut_sequence", "\xE2\x82"},
                                                         {"invalid_byte", "\xFF"},
                                                         {"overlong_two", "\xC0\xAF"},
                                                         {"overlong_three", "\xE0\x80\xAF"},
                                                         {"overlong_four", "\xF0\x80\x80\xAF"},
                                                         {"overlong_nul", "\xC0\x80"},
                                                         {"high_surrogate", "\xED\xA0\x80"},
                                                         {"low_surrogate", "\xED\xBF\xBF"},
                                                         {"above_10ffff", "\xF4\x90\x80\x80"},
                                                         {"five_bytes", "\xF8\x88\x80\x80\x80"}};
    for (const auto& [name, text] : texts) {
        cases.push_back(
            reject(Errc::header_not_utf8, "utf8_name_"s + name, table(u8("a"s + text, 0, 1)), 1));
        cases.push_back(reject(Errc::header_not_utf8, "utf8_metadata_"s + name,
                               table(metadata(R"({"k":")"s + text + R"("})"))));
        cases.push_back(
            reject(Errc::header_not_utf8, "utf8_outside_strings_"s + name, "{"s + text + "}"));
        cases.push_back(
            reject(Errc::header_not_utf8, "utf8_behind_the_object_"s + name, "{}"s + text));
    }
}

void add_bad_json(std::vector<HeaderCase>& cases) {
    const auto syntax = [&](const std::string& name, const std::string& json,
                            const std::string& of = {}) {
        cases.push_back(reject(Errc::header_syntax, name, json, 1, of));
    };
    const std::string a = u8("a", 0, 1);
    syntax("byte_order_mark", "\xEF\xBB\xBF" + table(a));
    syntax("white_space_alone", "   ");
    syntax("unclosed", "{" + a);
    syntax("open_brace", "{");
    syntax("nul_alone", "\0"s);
    syntax("nul_inside", "{\0}"s);
    syntax("nul_in_name", "{\"a\0\":{}}"s);
    syntax("trailing_comma", table(a + ","));
    syntax("trailing_comma_in_tensor", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],}})",
           "a");
    syntax("trailing_comma_in_shape", table(tensor("a", R"("U8")", "[1,]", "[0,1]")), "a");
    syntax("leading_comma", table("," + a));
    syntax("block_comment", table("/* a */" + a));
    syntax("line_comment", table("// a\n" + a));
    syntax("hash_comment", table("# a\n" + a));
    syntax("single_quotes", "{'a':1}");
    syntax("unquoted_key", "{a:1}");
    syntax("missing_colon", R"({"a" 1})", "a");
    syntax("bad_escape", R"({"\q":1})");
    syntax("short_unicode_escape", R"({"\u12":1})");
    syntax("lone_high_surrogate_escape", table(u8(R"(\ud800)", 0, 1)));
    syntax("lone_low_surrogate_escape", table(u8(R"(\udc00)", 0, 1)));
    syntax("high_surrogate_twice", table(u8(R"(\ud800\ud800)", 0, 1)));
    syntax("upper_case_literal", R"({"a":{"x":TRUE}})", "a");
    syntax("not_a_number_in_unknown_field", R"({"a":{"x":NaN}})", "a");
    syntax("huge_exponent_in_unknown_field", R"({"a":{"x":1e999999}})", "a");
    syntax("vertical_tab", "{\v}");
    syntax("form_feed", "{\f}");
    syntax("no_break_space", "{\xC2\xA0}");
    syntax("mismatched_brackets", R"({"a":{"x":[}})", "a");
    for (int byte = 0x01; byte < 0x20; ++byte)
        syntax(fmt::format("raw_control_{:02x}", byte),
               table(metadata(fmt::format("{{\"k\":\"{}\"}}", static_cast<char>(byte)))));

    const auto trailing = [&](const std::string& name, const std::string& text) {
        cases.push_back(reject(Errc::header_trailing_text, name, table(a) + text, 1));
    };
    trailing("second_value", "{}");
    trailing("second_value_after_space", " {}");
    trailing("text_after_the_object", "x");
    trailing("brace_after_the_object", "}");
    trailing("comma_after_the_object", ",");
    trailing("comment_after_the_object", "/**/");
    trailing("huge_number_after_the_object", "1e999999");
    trailing("nul_padding", "\0\0\0\0"s);
    trailing("nul_after_space", "  \0"s);
    trailing("space_after_nul", "\0  "s);
    trailing("control_after_the_object", "\x01");
    trailing("form_feed_after_the_object", "\f");

    const std::pair<const char*, const char*> values[] = {
        {"array", "[]"},      {"array_of_objects", "[{}]"},
        {"string", R"("a")"}, {"number", "1"},
        {"negative", "-1"},   {"float", "1.5"},
        {"null", "null"},     {"true", "true"},
        {"false", "false"},   {"huge_exponent", "1e999999"}};
    for (const auto& [name, text] : values)
        cases.push_back(reject(Errc::header_not_object, "top_level_"s + name, text));
}

void add_duplicates(std::vector<HeaderCase>& cases) {
    const auto twice = [&](const std::string& name, const std::string& json,
                           const std::string& of = {}) {
        cases.push_back(reject(Errc::header_duplicate_key, "duplicate_" + name, json, 1, of));
    };
    const std::string a = u8("a", 0, 1);
    twice("tensor", table(a + "," + a), "a");
    twice("tensor_apart", table(a + "," + u8("b", 1, 1) + "," + u8("a", 1, 1)), "a");
    twice("tensor_through_escape", table(a + "," + u8(R"(\u0061)", 0, 1)), "a");
    twice("tensor_through_surrogates",
          table(u8("\xF0\x9F\x98\x80", 0, 1) + "," + u8(R"(\ud83d\ude00)", 1, 1)),
          "\xF0\x9F\x98\x80");
    twice("empty_tensor_name", table(u8("", 0, 1) + "," + u8("", 1, 1)));
    twice("metadata", table(metadata("{}") + "," + metadata("{}") + "," + a));
    twice("metadata_null", table(metadata("null") + "," + metadata("null")));
    twice("metadata_through_escape", table(metadata("{}") + R"(,"\u005f_metadata__":{})"));
    twice("metadata_key", table(metadata(R"({"k":"1","k":"2"})")));
    twice("metadata_key_through_escape", table(metadata(R"({"k":"1","\u006b":"1"})")));
    const std::string fields = R"("dtype":"U8","shape":[1],"data_offsets":[0,1])";
    twice("dtype", R"({"a":{)" + fields + R"(,"dtype":"U8"}})", "a");
    twice("shape", R"({"a":{)" + fields + R"(,"shape":[1]}})", "a");
    twice("data_offsets", R"({"a":{)" + fields + R"(,"data_offsets":[0,1]}})", "a");
    twice("dtype_through_escape", R"({"a":{)" + fields + R"(,"d\u0074ype":"U8"}})", "a");
    twice("unknown_field", R"({"a":{)" + fields + R"(,"x":1,"x":1}})", "a");
    twice("unknown_field_through_escape", R"({"a":{)" + fields + R"(,"x":1,"\u0078":1}})", "a");
    twice("key_in_unknown_field", R"({"a":{)" + fields + R"(,"x":{"y":1,"y":2}}})", "a");
    twice("key_deep_in_unknown_field", R"({"a":{)" + fields + R"(,"x":[{"y":1,"y":2}]}})", "a");
}

void add_bad_structure(std::vector<HeaderCase>& cases) {
    const auto add = [&](Errc expected, const std::string& name, const std::string& json,
                         const std::string& of = "a") {
        cases.push_back(reject(expected, name, json, 1, of));
    };
    const std::pair<const char*, const char*> values[] = {
        {"array", "[]"},  {"null", "null"}, {"string", R"("U8")"},        {"number", "1"},
        {"true", "true"}, {"float", "1.5"}, {"huge_exponent", "1e999999"}};
    for (const auto& [name, text] : values) {
        add(Errc::header_bad_tensor, "tensor_is_"s + name, R"({"a":)"s + text + "}");
        if (text != "null"s)
            add(Errc::header_bad_metadata, "metadata_is_"s + name, table(metadata(text)), "");
        if (text != R"("U8")"s)
            add(Errc::header_bad_metadata, "metadata_value_is_"s + name,
                table(metadata(R"({"k":)"s + text + "}")), "");
    }
    add(Errc::header_bad_metadata, "metadata_value_is_object", table(metadata(R"({"k":{}})")), "");

    add(Errc::header_missing_field, "missing_all", R"({"a":{}})");
    add(Errc::header_missing_field, "missing_dtype", R"({"a":{"shape":[1],"data_offsets":[0,1]}})");
    add(Errc::header_missing_field, "missing_shape",
        R"({"a":{"dtype":"U8","data_offsets":[0,1]}})");
    add(Errc::header_missing_field, "missing_offsets", R"({"a":{"dtype":"U8","shape":[1]}})");
    add(Errc::header_missing_field, "field_in_upper_case",
        R"({"a":{"DTYPE":"U8","shape":[1],"data_offsets":[0,1]}})");
    add(Errc::header_missing_field, "field_inside_unknown_field",
        R"({"a":{"x":{"dtype":"U8"},"shape":[1],"data_offsets":[0,1]}})");

    for (const char* offsets : {"[]", "[0]", "[0,1,1]"})
        add(Errc::header_bad_offsets,
            fmt::format("offsets_count_{}", offsets[1] == ']'   ? 0
                                            : offsets[2] == ']' ? 1
                                                                : 3),
            table(tensor("a", R"("U8")", "[1]", offsets)));

    const std::string head = R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":)";
    add(Errc::header_too_deep, "depth_5_of_arrays", head + "[[[]]]}}");
    add(Errc::header_too_deep, "depth_5_of_objects", head + R"({"x":{"x":{}}}}})");
    add(Errc::header_too_deep, "depth_100000_of_arrays", head + std::string(100'000, '['));
    add(Errc::header_too_deep, "depth_100000_of_objects", head + repeated(100'000, R"({"x":)"));
    add(Errc::header_not_object, "top_level_100000_arrays", std::string(100'000, '['), "");
}

void add_bad_sizes(std::vector<HeaderCase>& cases) {
    const auto add = [&](Errc expected, const std::string& name, const std::string& dtype,
                         const std::string& shape, const std::string& offsets,
                         std::uint64_t data_bytes) {
        cases.push_back(reject(expected, name,
                               table(tensor("a", "\"" + dtype + "\"", shape, offsets)), data_bytes,
                               "a"));
    };
    using enum Errc;
    const std::string half = "4294967296";
    add(header_size_overflow, "product_overflow", "U8", "[" + half + "," + half + "]", "[0,0]", 0);
    add(header_size_overflow, "product_overflow_before_zero", "U8", "[" + half + "," + half + ",0]",
        "[0,0]", 0);
    add(header_size_overflow, "product_overflow_behind_zero", "U8", "[0," + half + "," + half + "]",
        "[0,0]", 0);
    add(header_size_overflow, "product_overflow_around_zero", "U8", "[" + half + ",0," + half + "]",
        "[0,0]", 0);
    add(header_size_overflow, "byte_overflow", "F64", "[2305843009213693952]", "[0,0]", 0);
    add(header_size_overflow, "byte_overflow_with_zero", "F64", "[0,2305843009213693952]", "[0,0]",
        0);
    add(header_offsets_reversed, "offsets_reversed", "U8", "[1]", "[1,0]", 1);
    add(header_offsets_reversed, "offsets_reversed_empty", "U8", "[0]", "[1,0]", 1);
    add(header_offsets_reversed, "offsets_reversed_far", "U8", "[1]", "[18446744073709551615,0]",
        1);
    add(header_offsets_beyond_file, "offsets_beyond_file", "U8", "[1]", "[1,2]", 1);
    add(header_offsets_beyond_file, "offsets_beyond_file_and_size", "U8", "[1]", "[0,2]", 1);
    add(header_offsets_beyond_file, "offsets_far_beyond_file", "U8", "[1]",
        "[18446744073709551614,18446744073709551615]", 1);
    add(header_size_mismatch, "size_too_small", "U8", "[2]", "[0,1]", 1);
    add(header_size_mismatch, "size_too_large", "U8", "[1]", "[0,2]", 2);
    add(header_size_mismatch, "size_of_other_dtype", "U16", "[1]", "[0,1]", 1);
    add(header_size_mismatch, "size_of_empty_tensor", "U8", "[0]", "[0,1]", 1);
    add(header_size_mismatch, "size_of_scalar", "U8", "[]", "[0,0]", 0);
    add(header_partial_byte, "partial_byte_f4", "F4", "[3]", "[0,2]", 2);
    add(header_partial_byte, "partial_byte_f4_scalar", "F4", "[]", "[0,1]", 1);
    add(header_partial_byte, "partial_byte_f6_e2m3", "F6_E2M3", "[2]", "[0,2]", 2);
    add(header_partial_byte, "partial_byte_f6_e3m2", "F6_E3M2", "[5]", "[0,4]", 4);
}

void add_bad_layouts(std::vector<HeaderCase>& cases) {
    const auto add = [&](Errc expected, const std::string& name, const std::string& members,
                         std::uint64_t data_bytes, const std::string& of) {
        cases.push_back(reject(expected, name, table(members), data_bytes, of));
    };
    using enum Errc;
    add(header_hole, "first_offset_not_0", u8("a", 1, 2), 2, "a");
    add(header_hole, "first_offset_not_0_of_empty", u8("a", 1, 1), 1, "a");
    add(header_hole, "hole", u8("a", 0, 1) + "," + u8("b", 2, 3), 3, "b");
    add(header_hole, "hole_in_reversed_order", u8("b", 2, 3) + "," + u8("a", 0, 1), 3, "b");
    add(header_overlap, "overlap", u8("a", 0, 2) + "," + u8("b", 1, 3), 3, "b");
    add(header_overlap, "overlap_of_equal_ranges", u8("a", 0, 2) + "," + u8("b", 0, 2), 2, "b");
    add(header_overlap, "overlap_inside", u8("a", 0, 4) + "," + u8("b", 1, 3), 4, "b");
    add(header_overlap, "empty_tensor_inside_another", u8("a", 0, 2) + "," + u8("b", 1, 1), 2, "b");
    add(header_missing_data, "missing_data", u8("a", 0, 1) + "," + u8("b", 1, 3), 2, "b");
    add(header_missing_data, "missing_all_data", u8("a", 0, 1), 0, "a");
    add(header_trailing_data, "trailing_data", u8("a", 0, 1), 2, "");
    add(header_trailing_data, "trailing_data_without_tensors", "", 1, "");
    add(header_trailing_data, "trailing_data_behind_empty_tensor", u8("a", 0, 0), 1, "");
}

void add_limits(std::vector<HeaderCase>& cases) {
    const std::string longest(4096, 'n');
    cases.push_back(accept("name_of_4096_bytes", table(u8(longest, 0, 1)), 1));
    cases.push_back(reject(Errc::header_name_too_long, "name_of_4097_bytes",
                           table(u8(longest + "n", 0, 1)), 1, longest + "n"));
    const auto of_rank = [](std::size_t rank) {
        return table(tensor("a", R"("U8")", "[1" + repeated(rank - 1, ",1") + "]", "[0,1]"));
    };
    cases.push_back(accept("rank_40", of_rank(40), 1));
    cases.push_back(accept("rank_64", of_rank(64), 1));
    cases.push_back(reject(Errc::header_rank_too_high, "rank_65", of_rank(65), 1, "a"));
    cases.push_back(accept(
        "depth_4", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":[[]],"y":{"z":{}}}})",
        1));
}

} // namespace

std::vector<HeaderCase> accepted_cases() {
    const std::string a = u8("a", 0, 1);
    std::vector<HeaderCase> cases{
        accept("empty_object", "{}"),
        accept("empty_object_and_spaces", "{}      "),
        accept("rank_0", table(tensor("a", R"("F32")", "[]", "[0,4]")), 4),
        accept("empty_tensor_alone", table(u8("a", 0, 0))),
        accept("empty_tensor_first", table(u8("a", 0, 0) + "," + u8("b", 0, 1)), 1),
        accept("empty_tensor_between",
               table(u8("a", 0, 1) + "," + u8("b", 1, 1) + "," + u8("c", 1, 2)), 2),
        accept("empty_tensor_last", table(u8("a", 0, 1) + "," + u8("b", 1, 1)), 1),
        accept("empty_tensor_listed_behind_its_neighbour",
               table(u8("a", 0, 1) + "," + u8("c", 1, 2) + "," + u8("b", 1, 1)), 2),
        accept("empty_tensor_of_odd_f4", table(tensor("a", R"("F4")", "[0,3]", "[0,0]"))),
        accept("empty_tensor_of_largest_shape",
               table(tensor("a", R"("U8")", "[0,18446744073709551615]", "[0,0]"))),
        accept("metadata_alone", table(metadata(R"({"format":"pt"})"))),
        accept("metadata_empty", table(metadata("{}"))),
        accept("metadata_null", table(metadata("null"))),
        accept("metadata_last", table(a + "," + metadata(R"({"k":"v"})")), 1),
        accept("metadata_empty_key_and_value", table(metadata(R"({"":""})"))),
        accept("metadata_named_like_fields", table(metadata(R"({"dtype":"","shape":""})"))),
        accept("trailing_space", table(a) + " ", 1),
        accept("trailing_cr", table(a) + "\r", 1),
        accept("trailing_lf", table(a) + "\n", 1),
        accept("trailing_tab", table(a) + "\t", 1),
        accept("leading_white_space", " \t\r\n" + table(a), 1),
        accept("white_space_between",
               "{ \"a\" :\n{ \"dtype\"\t:\r\"U8\" , \"shape\" : [ 1 ] , "
               "\"data_offsets\" : [ 0 , 1 ] } }",
               1),
        accept("length_not_a_multiple_of_8", "{} "),
        accept("json_order_unlike_offset_order",
               table(u8("a", 2, 3) + "," + u8("b", 0, 1) + "," + u8("c", 1, 2)), 3),
        accept("misaligned_start",
               table(u8("a", 0, 1) + "," + tensor("b", R"("F64")", "[1]", "[1,9]")), 9),
        accept("field_order", R"({"a":{"data_offsets":[0,1],"shape":[1],"dtype":"U8"}})", 1),
        accept("field_name_through_escape",
               R"({"a":{"d\u0074ype":"U8","shape":[1],"data_offsets":[0,1]}})", 1),
        accept("name_unicode", table(u8("gewicht_\xC3\xA4_\xF0\x9F\x98\x80", 0, 1)), 1),
        accept("name_unicode_through_escape", table(u8(R"(\u00e4\ud83d\ude00)", 0, 1)), 1),
        accept("name_escaped", table(u8(R"(\"\\\/\b\f\n\r\t)", 0, 1)), 1),
        accept("name_empty", table(u8("", 0, 1)), 1),
        accept("name_slash", table(u8("a/b", 0, 1)), 1),
        accept("name_parent_directory", table(u8("../../etc/passwd", 0, 1)), 1),
        accept("name_nul", table(u8(R"(a\u0000b)", 0, 1)), 1),
        accept("name_delete_character", table(u8("\x7F", 0, 1)), 1),
        accept("names_that_differ_behind_nul",
               table(u8(R"(a\u0000b)", 0, 1) + "," + u8(R"(a\u0000c)", 1, 2)), 2),
        accept("names_that_differ_in_case", table(u8("a", 0, 1) + "," + u8("A", 1, 2)), 2),
        accept("names_composed_and_decomposed",
               table(u8("\xC3\xA9", 0, 1) + "," + u8("e\xCC\x81", 1, 2)), 2),
        accept("name_like_a_field", table(u8("dtype", 0, 1)), 1),
        accept("unknown_fields",
               R"({"a":{"x":1,"dtype":"U8","y":[null,true,-1.5e3],"shape":[1],"z":{"z":"z"},)"
               R"("data_offsets":[0,1],"w":null}})",
               1),
        accept("unknown_field_of_huge_integer",
               R"({"a":{"x":123456789012345678901234567890,"dtype":"U8","shape":[1],)"
               R"("data_offsets":[0,1]}})",
               1),
        accept("unknown_field_of_minus_zero",
               R"({"a":{"x":-0,"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1),
    };
    add_dtypes(cases);
    std::vector<HeaderCase> limits;
    add_limits(limits);
    for (HeaderCase& each : limits)
        if (!each.expected)
            cases.push_back(std::move(each));
    return cases;
}

std::vector<HeaderCase> rejected_cases() {
    std::vector<HeaderCase> cases;
    add_bad_utf8(cases);
    add_bad_json(cases);
    add_duplicates(cases);
    add_bad_structure(cases);
    add_bad_dtypes(cases);
    add_bad_integers(cases);
    add_bad_sizes(cases);
    add_bad_layouts(cases);
    std::vector<HeaderCase> limits;
    add_limits(limits);
    for (HeaderCase& each : limits)
        if (each.expected)
            cases.push_back(std::move(each));
    return cases;
}

} // namespace safering::safetensors
