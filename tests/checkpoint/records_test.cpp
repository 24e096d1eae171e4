// Manifest and index: round trips, every changed byte, everything that they must refuse.
#include <gtest/gtest.h>

#include "../changed_text.hpp"
#include "checkpoint/index.hpp"
#include "checkpoint/manifest.hpp"
#include "checkpoint/strict_json.hpp"

namespace safering::test {
namespace {

using namespace checkpoint;

Manifest example() {
    Manifest manifest{.attempt = std::string(32, 'a'),
                      .layout = FileLayout::sharded,
                      .digests = true,
                      .chunk_bytes = 4096};
    manifest.files.push_back({.name = "model-00001-of-00002.safetensors",
                              .file_bytes = 123456,
                              .data_begin = 4096,
                              .head_digest = 0xFEDCBA9876543210});
    FileExtents& extents = manifest.files.back().extents;
    extents.add_tensor();
    extents.add({nullptr, Digests{1, 2, ~std::uint64_t{0}}});
    extents.add_tensor();
    const ChunkStorageMetadata upper{{0, 0}, {2, 3}}, lower{{2, 0}, {1, 3}};
    extents.add({&upper, Digests{5}});
    extents.add({&lower, {}});
    extents.add_tensor();
    extents.add({&upper, Digests{6}});
    manifest.files.push_back({.name = "model-00002-of-00002.safetensors"});
    manifest.tensors.emplace("name \"with\" \\ and \u00e9 and \n",
                             ManifestTensor{Dtype::bf16, {3, 3}});
    manifest.tensors.emplace("scalar", ManifestTensor{Dtype::f8_e4m3, {}});
    manifest.index = ManifestIndex{77, 42};
    return manifest;
}

TEST(Manifest, RoundTrips) {
    const Manifest manifest = example();
    EXPECT_EQ(parse_manifest(to_text(manifest), "m").value(), manifest);
    Manifest bare{.attempt = std::string(32, '0'), .digests = false, .chunk_bytes = 1 << 22};
    EXPECT_EQ(parse_manifest(to_text(bare), "m").value(), bare);
}

// Else a round trip would prove nothing.
TEST(Manifest, DiffersWhereAMemberDoes) {
    for (void (*change)(Manifest&) : std::initializer_list<void (*)(Manifest&)>{
             [](Manifest& m) { m.attempt[0] = 'b'; },
             [](Manifest& m) { m.layout = FileLayout::full; },
             [](Manifest& m) { m.digests = false; }, [](Manifest& m) { m.chunk_bytes *= 2; },
             [](Manifest& m) { m.files.pop_back(); }, [](Manifest& m) { m.files[0].name += 's'; },
             [](Manifest& m) { ++m.files[0].file_bytes; },
             [](Manifest& m) { ++m.files[0].data_begin; },
             [](Manifest& m) { ++m.files[0].head_digest; },
             [](Manifest& m) { m.files[0].extents.add_tensor(); },
             [](Manifest& m) { m.tensors.erase(m.tensors.begin()); },
             [](Manifest& m) { m.tensors["scalar"].dtype = Dtype::u8; },
             [](Manifest& m) { m.tensors["scalar"].size = {1}; },
             [](Manifest& m) { m.index.reset(); }, [](Manifest& m) { ++m.index->file_bytes; },
             [](Manifest& m) { ++m.index->digest; }}) {
        Manifest changed = example();
        change(changed);
        EXPECT_NE(changed, example());
    }
}

TEST(Manifest, NoticesEveryChangedByteAndEveryCut) {
    const std::string text = to_text(example());
    for (std::size_t i = 0; i < text.size(); ++i) {
        for (const char bit : {1, 32, 64}) {
            std::string changed = text;
            changed[i] = static_cast<char>(changed[i] ^ bit);
            auto parsed = parse_manifest(changed, "m");
            ASSERT_FALSE(parsed) << i;
            EXPECT_EQ(parsed.error().code, Errc::checkpoint_bad_manifest);
        }
        EXPECT_FALSE(parse_manifest(text.substr(0, i), "m")) << i;
    }
    EXPECT_FALSE(parse_manifest(text + " ", "m"));
}

// A manifest in the form that the quick way takes: no name has escapes.
Manifest plain_example() {
    Manifest plain = example();
    plain.tensors.erase(plain.tensors.begin());
    return plain;
}

// A sealed manifest with one thing replaced.
Result<Manifest> with(const Manifest& manifest, std::string_view from, std::string_view to) {
    std::string text = to_text(manifest);
    text.resize(text.rfind(",\"xxh3\""));
    const auto at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    text.replace(at, from.size(), to);
    return parse_manifest(seal_json(text), "m");
}

// An escape in a key makes no difference but to the way that the text is read.
TEST(Manifest, ReadsTheSameTheQuickWayAndTheLong) {
    const Manifest plain = plain_example();
    std::string text = to_text(plain);
    text.resize(text.rfind(",\"xxh3\""));
    const auto at = text.find("\"files\"");
    text.replace(at, 7, R"("fil\u0065s")");
    EXPECT_EQ(parse_manifest(seal_json(text), "m").value(), plain);
    EXPECT_EQ(parse_manifest(to_text(plain), "m").value(), plain);
}

// A member that nobody knows leads past the quick way.
TEST(Manifest, TheQuickWayTakesNothingThatTheLongWayRefuses) {
    std::string text = to_text(plain_example());
    text.resize(text.rfind(",\"xxh3\""));
    std::size_t taken = 0;
    for_each_change(text, [&](const std::string& changed) {
        const auto quick = parse_manifest(seal_json(changed), "m");
        const auto longer = parse_manifest(seal_json(changed + R"(,"more":0)"), "m");
        EXPECT_TRUE(same(quick, longer)) << changed;
        taken += quick.has_value() ? 1 : 0;
    });
    EXPECT_GT(taken, 100u); // other digits, other names, white space
}

TEST(Manifest, RefusesWhatIsSealedButWrong) {
    const std::pair<const char*, const char*> bad[] = {
        {"\"safering_manifest\":1", "\"safering_manifest\":2"},
        {"\"safering_manifest\":1", "\"safering_manifest\":\"1\""},
        {"\"attempt\":\"a", "\"attempt\":\"A"},
        {"\"sharded\"", "\"shredded\""},
        {"xxh3-64", "md5"},
        {"\"chunk_bytes\":4096", "\"chunk_bytes\":4095"},
        {"\"chunk_bytes\":4096", "\"chunk_bytes\":0"},
        {"\"chunk_bytes\":4096", "\"chunk_bytes\":-4096"},
        {"\"size\":123456", "\"size\":1.5"},
        {"\"files\":[", "\"files\":[3,"},
        {"0000000000000001", "000000000000000g"},
        {"0000000000000001", "00000000000001"},
        {"[0,0]", "[0,-1]"},
        {"\"F8_E4M3\"", "\"f8_e4m3\""},
        {"00002-of", "00001-of"},
        {"\"attempt\"", "\"attempt\":\"x\",\"attempt\""},
        {"\"head\":4096", "\"head\":[[[[[[[[[[]]]]]]]]]]"},
        {"\"layout\":\"sharded\"", "\"layout\":7"},
        {"\"extents\":[", "\"extents\":[7,"},
        {"\"extents\":[", "\"extents\":[[7],"},
        {"\"extents\":[", "\"extents\":[[[[0],[1]]],"},
        {"\"scalar\":[", "\"scalar\":7,\"other\":["},
        {"[\"F8_E4M3\",", "[\"F8_E4M3\",[],"},
        // Where the seal is looked for: its key stands twice, or something else stands there.
        {",\n\"index\"", ",\"xxh3\":1,\"index\""},
        {",\n\"index\"", ",\"xxh3\":\"a\",\"index\""},
        {",\n\"index\"", ",\"xxh3\":\"a\"},\"index\""},
        {"02a\"}", "02a\"}7"},
        {"02a\"}", "02a\"},7"},
        {"02a\"}", "02a\"},\"a\"7"},
    };
    for (const Manifest& manifest : {example(), plain_example()})
        for (const auto& [from, to] : bad) {
            auto parsed = with(manifest, from, to);
            ASSERT_FALSE(parsed) << from << " -> " << to;
            EXPECT_EQ(parsed.error().code, Errc::checkpoint_bad_manifest)
                << parsed.error().message();
            EXPECT_FALSE(parsed.error().detail.empty());
        }
    for (const char* name : {"../x.safetensors", "/x.safetensors", "a/b.safetensors", "x.bin", "..",
                             "x\\u0000.safetensors", ""}) {
        auto parsed = with(example(), "model-00001-of-00002.safetensors", name);
        ASSERT_FALSE(parsed) << name;
        EXPECT_EQ(parsed.error().code, Errc::checkpoint_unsafe_name) << parsed.error().message();
    }
}

TEST(Index, RoundTripsWithExactlyTheTwoKeys) {
    const WeightMap weight_map{{"a", "model-00001-of-00001.safetensors"},
                               {"b \"c\"", "x.safetensors"}};
    const std::string text = index_text(weight_map, 7);
    EXPECT_EQ(parse_index(text, "i").value(), weight_map);
    const auto json = nlohmann::json::parse(text);
    EXPECT_EQ(json.size(), 2u);
    EXPECT_EQ(json["metadata"], (nlohmann::json{{"total_size", 7}}));
    EXPECT_EQ(parse_index(index_text(WeightMap{}, 0), "i").value(), WeightMap{});
}

TEST(Index, ReadsTheSameTheQuickWayAndTheLong) {
    const WeightMap weight_map{{"a", "x.safetensors"}, {"b", "y.safetensors"}};
    for (const char* text :
         {R"({"metadata":{"total_size":7},"weight_map":{"a":"x.safetensors","b":"y.safetensors"}})",
          R"({"metadata":{"total_size":7},"weight_map":{"b":"y.safetensors","a":"x.safetensors"}})",
          R"({"weight_map":{"a":"x.safetensors","\u0062":"y.safetensors"},"more":[1.5,{}]})"})
        EXPECT_EQ(parse_index(text, "i").value(), weight_map) << text;
}

TEST(Index, TheQuickWayTakesNothingThatTheLongWayRefuses) {
    std::string text = index_text({{"a", "x.safetensors"}, {"b", "y.safetensors"}}, 70);
    text.resize(text.rfind('}'));
    std::size_t taken = 0;
    for_each_change(text, [&](const std::string& changed) {
        const auto quick = parse_index(changed + '}', "i");
        const auto longer = parse_index(changed + R"(,"more":0})", "i");
        EXPECT_TRUE(same(quick, longer)) << changed;
        taken += quick.has_value() ? 1 : 0;
    });
    EXPECT_GT(taken, 20u);
}

TEST(Index, RefusesWhatIsWrong) {
    for (const char* text : {"", "[]", "{}", "{\"weight_map\":[]}", "{\"weight_map\":{\"a\":1}}",
                             "{\"weight_map\":{}} x",
                             "{\"weight_map\":{\"a\":\"x.safetensors\",\"a\":\"y.safetensors\"}}",
                             R"({"metadata":{"total_size":1},"weight_map":{"a":"x.safetensors",)"
                             R"("a":"y.safetensors"}})",
                             "{\"weight_map\":{\"\xff\":\"x.safetensors\"}}"}) {
        auto parsed = parse_index(text, "i");
        ASSERT_FALSE(parsed) << text;
        EXPECT_EQ(parsed.error().code, Errc::checkpoint_bad_index);
    }
    for (const char* name : {"../x.safetensors", "/etc/x.safetensors", "x.bin", "", "."}) {
        auto parsed = parse_index(index_text({{"a", name}}, 0), "i");
        ASSERT_FALSE(parsed) << name;
        EXPECT_EQ(parsed.error().code, Errc::checkpoint_unsafe_name);
        EXPECT_EQ(parsed.error().tensor, "a");
    }
    EXPECT_FALSE(parse_index(std::string(100000, '['), "i"));
}

TEST(StrictJson, TakesTimeInProportionToTheText) {
    // With time that grows as the square of the members this one alone would outlast the test's limit.
    constexpr std::size_t members = 300'000;
    std::string text = "{";
    for (std::size_t i = 0; i < members; ++i)
        text += (i == 0 ? "\"" : ",\"") + std::to_string(i) + R"(":{"saved_offsets":[0,8]})";
    text += '}';
    const auto parsed = parse_strict_json(text, 4, Errc::checkpoint_bad_index, "read", "f");
    ASSERT_TRUE(parsed) << parsed.error().message();
    EXPECT_EQ(parsed->size(), members);
}

TEST(StrictJson, ReadsEveryKindOfValueEverywhere) {
    for (const std::string value :
         {"null", "true", "false", "0", "-7", "18446744073709551615", "1.5", R"("a\u00e9\n")", "[]",
          "{}", R"([1,[null,{"b":2}],{}])"})
        for (const std::string& text : {value, '[' + value + ',' + value + ']',
                                        R"({"a":)" + value + R"(,"":)" + value + '}'}) {
            const auto parsed = parse_strict_json(text, 4, Errc::checkpoint_bad_index, "read", "f");
            ASSERT_TRUE(parsed) << text << ": " << parsed.error().message();
            EXPECT_EQ(*parsed, nlohmann::json::parse(text)) << text;
        }
}

TEST(StrictJson, NamesTheRuleThatIsBroken) {
    for (const auto& [text, fault] : std::initializer_list<std::pair<const char*, const char*>>{
             {R"({"a":1,"b":{"a":1,"a":2}})", "key \"a\" stands twice"},
             {R"({"a":1,"\u0061":2})", "key \"a\" stands twice"},
             {R"({"\n":1,"\n":2})", R"(key "\x0a" stands twice)"},
             {R"([[[{}]]])", "nested deeper than 3"},
             {R"({"a":1,})", "parse error"},
             {R"({"a":1} x)", "parse error"},
             {R"({"a":1e999999})", "number overflow"},
             {"", "parse error"}}) {
        const auto parsed = parse_strict_json(text, 3, Errc::checkpoint_bad_index, "read", "f");
        ASSERT_FALSE(parsed) << text;
        EXPECT_NE(parsed.error().detail.find(fault), std::string::npos)
            << parsed.error().detail;
    }
    EXPECT_EQ(parse_strict_json(R"([[[1]]])", 3, Errc::checkpoint_bad_index, "read", "f").value(),
              nlohmann::json::parse("[[[1]]]"));
}

TEST(CellCount, CountsEveryCellTouched) {
    EXPECT_EQ(cell_count({0, 0}, 4096), 0u);
    EXPECT_EQ(cell_count({5, 6}, 4096), 1u);
    EXPECT_EQ(cell_count({0, 4096}, 4096), 1u);
    EXPECT_EQ(cell_count({4095, 4097}, 4096), 2u);
    EXPECT_EQ(cell_count({1, 3 * 4096}, 4096), 3u);
}

} // namespace
} // namespace safering::test
