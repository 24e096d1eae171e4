#include "plan/layout.hpp"

#include <set>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <rapidcheck/gtest.h>

#include "random_plans.hpp"
#include "safetensors/header.hpp"

namespace safering::plan {
namespace {

WriteItem whole(std::string fqn, Shape size, Dtype dtype = Dtype::f32) {
    return {std::move(fqn), WriteItemType::tensor, dtype, {Shape(size.size(), 0), size}, size};
}

WriteItem shard(std::string fqn, Shape offsets, Shape sizes, Shape size) {
    return {std::move(fqn), WriteItemType::shard, Dtype::f32, {offsets, sizes}, size};
}

std::vector<std::string> names_of(const Layout& layout) {
    std::vector<std::string> names;
    for (const LayoutFile& file : layout.files)
        names.push_back(file.file.name);
    return names;
}

std::string metadata_value(const safetensors::Header& header, std::string_view key) {
    for (const auto& [k, value] : header.metadata)
        if (k == key)
            return value;
    return "absent";
}

Errc layout_error(const std::vector<SavePlan>& plans, const LayoutOptions& options) {
    const auto layout = plan_layout(plans, options);
    EXPECT_FALSE(layout.has_value());
    return layout ? Errc{} : static_cast<Errc>(layout.error().code.value());
}

TEST(Layout, FullGivesEveryTensorOnePlace) {
    std::vector<SavePlan> plans{{0, {shard("a", {0, 0}, {2, 4}, {4, 4}), whole("scalar", {})}, {}},
                                {1, {shard("a", {2, 0}, {2, 4}, {4, 4}), whole("b", {1024})}, {}},
                                {2, {}, {}}};
    const auto layout = plan_layout(
        plans, {.fqn_to_index_mapping = {{"a", 1}, {"scalar", 3}, {"b", 1}, {"tied", 2}}});
    ASSERT_TRUE(layout.has_value());
    EXPECT_EQ(names_of(*layout), (std::vector<std::string>{"model-00001-of-00003.safetensors",
                                                           "model-00003-of-00003.safetensors"}));
    EXPECT_EQ(layout->placements[0][0], layout->placements[1][0]);
    EXPECT_EQ(layout->placements[0][1], (ItemPlacement{1, 4096}));
    EXPECT_EQ(layout->placements[1][1], (ItemPlacement{0, 4096})); // whole pages first
    EXPECT_EQ(layout->placements[0][0], (ItemPlacement{0, 8192}));
    EXPECT_TRUE(layout->placements[2].empty());
    EXPECT_EQ(layout->weight_map,
              (decltype(layout->weight_map){{"a", 0}, {"b", 0}, {"scalar", 1}}));
    EXPECT_EQ(layout->total_size, 64u + 4096u + 4u);
    EXPECT_EQ(layout->files[0].file,
              (PlannedFile{"model-00001-of-00003.safetensors", 4096 + 4096 + 64, 4096}));
}

TEST(Layout, ShardedHasOneFileARankAndIndexAndFurtherOnesForFurtherChunks) {
    std::vector<SavePlan> plans{{0,
                                 {shard("a", {0}, {2}, {8}), shard("a", {4}, {2}, {8}),
                                  shard("a", {6}, {2}, {8}), whole("b", {3})},
                                 {}},
                                {1, {shard("a", {2}, {2}, {8}), shard("a", {3}, {0}, {8})}, {}},
                                {2, {}, {}}};
    const auto layout = plan_layout(
        plans, {.layout = FileLayout::sharded, .fqn_to_index_mapping = {{"a", 1}, {"b", 2}}});
    ASSERT_TRUE(layout.has_value());
    EXPECT_EQ(names_of(*layout),
              (std::vector<std::string>{"shard-00001-model-00001-of-00002.safetensors",
                                        "shard-00001-model-00002-of-00002.safetensors",
                                        "shard-00002-model-00001-of-00002.safetensors",
                                        "shard-00004-model-00001-of-00002.safetensors",
                                        "shard-00005-model-00001-of-00002.safetensors",
                                        "shard-00006-model-00001-of-00002.safetensors"}));
    const auto file_of = [&](std::size_t plan, std::size_t item) {
        return layout->placements[plan][item].file;
    };
    EXPECT_EQ(file_of(0, 0), 0u);
    EXPECT_EQ(file_of(0, 1), 3u);
    EXPECT_EQ(file_of(0, 2), 4u);
    EXPECT_EQ(file_of(0, 3), 1u);
    EXPECT_EQ(file_of(1, 0), 2u);
    EXPECT_EQ(file_of(1, 1), 5u);
    EXPECT_TRUE(layout->weight_map.empty());
    const LayoutFile& file = layout->files[3];
    const auto header = safetensors::parse_head(file.head, file.file.file_bytes, file.file.name);
    ASSERT_TRUE(header.has_value());
    EXPECT_EQ(metadata_value(*header, "DCP_SHARDING_INFO"), R"({"a":{"saved_offsets":[4]}})");
    EXPECT_EQ(metadata_value(*header, "DCP_VERSION"), "1.0");
    EXPECT_EQ(metadata_value(*header, "format"), "pt");
}

TEST(Layout, RanksThatPlanAloneNumberTheirFilesApart) {
    std::set<std::string> names;
    for (std::uint32_t rank = 0; rank < 3; ++rank) {
        const std::vector<SavePlan> own{
            {0, {shard("a", {rank * 2}, {1}, {6}), shard("a", {rank * 2 + 1}, {1}, {6})}, {}}};
        const auto layout =
            plan_layout(own, {.layout = FileLayout::sharded, .first_rank = rank, .ranks = 3});
        ASSERT_TRUE(layout.has_value());
        for (const std::string& name : names_of(*layout))
            EXPECT_TRUE(names.insert(name).second) << name;
    }
    EXPECT_EQ(names.size(), 6u);
    EXPECT_TRUE(names.contains(shard_file_name(3, 1, 1)));
}

TEST(Layout, NothingIsNoFile) {
    const auto layout = plan_layout({{0, {}, {}}}, {});
    ASSERT_TRUE(layout.has_value());
    EXPECT_TRUE(layout->files.empty());
    EXPECT_EQ(layout->total_size, 0u);
}

TEST(Layout, CallersMetadataIsKept) {
    const auto layout =
        plan_layout({{0, {whole("a", {1})}, {}}}, {.metadata = {{"step", "7"}, {"format", "np"}}});
    ASSERT_TRUE(layout.has_value());
    const LayoutFile& file = layout->files[0];
    const auto header = safetensors::parse_head(file.head, file.file.file_bytes, file.file.name);
    ASSERT_TRUE(header.has_value());
    EXPECT_EQ(header->metadata,
              (std::vector<std::pair<std::string, std::string>>{{"format", "np"}, {"step", "7"}}));
}

TEST(Layout, SaysWhatIsWrong) {
    EXPECT_EQ(layout_error({{0, {whole("a", {1})}, {}}}, {.fqn_to_index_mapping = {{"b", 1}}}),
              Errc::plan_unmapped_tensor);
    EXPECT_EQ(layout_error({{0, {whole("a", {1})}, {}}, {1, {whole("a", {1})}, {}}}, {}),
              Errc::plan_duplicate_item);
    EXPECT_EQ(layout_error({{0, {whole("a", {1})}, {}}, {1, {whole("a", {2})}, {}}}, {}),
              Errc::plan_shape_mismatch);
    EXPECT_EQ(layout_error({{0, {whole("a", {1}), whole("a", {1}, Dtype::f64)}, {}}}, {}),
              Errc::plan_shape_mismatch);
    EXPECT_EQ(layout_error({{0, {shard("a", {1}, {2}, {2})}, {}}}, {}), Errc::plan_out_of_bounds);
    EXPECT_EQ(layout_error({{0, {whole("a", {3}, Dtype::f4)}, {}}}, {}), Errc::plan_partial_byte);
    for (const FileLayout kind : {FileLayout::full, FileLayout::sharded})
        EXPECT_EQ(layout_error({{0, {whole("\xff", {3})}, {}}}, {.layout = kind}),
                  Errc::plan_bad_name);
    EXPECT_EQ(layout_error({{0, {whole("__metadata__", {3})}, {}}}, {}), Errc::plan_bad_name);
}

TEST(Layout, FileNames) {
    EXPECT_EQ(full_file_name(1, 2), "model-00001-of-00002.safetensors");
    EXPECT_EQ(shard_file_name(100001, 12, 12), "shard-100001-model-00012-of-00012.safetensors");
    for (const char* name : {"model.safetensors", "model-00001-of-00002.safetensors",
                             "shard-00001-model-00001-of-00001.safetensors",
                             "shard-100000-model-00001-of-00001.safetensors"})
        EXPECT_TRUE(is_checkpoint_file_name(name)) << name;
    for (const char* name :
         {"", "model", "model.safetensors.index.json", "xmodel.safetensors",
          "model-1-of-2.safetensors", "model-00001-of-00002.safetensors.bak",
          "shard-00001-model.safetensors", "shard-model-00001-of-00002.safetensors",
          "model-000001-of-00002.safetensors", "adapter_model.safetensors"})
        EXPECT_FALSE(is_checkpoint_file_name(name)) << name;
}

// Headers parse back, and every item's place holds a tensor of its name, dtype and shape.
void check_layout(const std::vector<SavePlan>& plans, const Layout& layout, FileLayout kind) {
    std::vector<safetensors::Header> headers;
    std::set<std::string> names;
    std::uint64_t total = 0;
    for (const LayoutFile& file : layout.files) {
        RC_ASSERT(names.insert(file.file.name).second);
        RC_ASSERT(is_checkpoint_file_name(file.file.name));
        RC_ASSERT(file.head.size() == file.file.data_begin);
        RC_ASSERT(file.file.data_begin % 4096 == 0u);
        auto header = safetensors::parse_head(file.head, file.file.file_bytes, file.file.name);
        RC_ASSERT(header.has_value());
        RC_ASSERT(!header->tensors.empty());
        total += header->tensors.back().data.end;
        headers.push_back(std::move(*header));
    }
    RC_ASSERT(total == layout.total_size);
    std::size_t entries = 0;
    for (const auto& header : headers)
        entries += header.tensors.size();
    std::set<std::tuple<std::uint32_t, std::string>> used;
    for (std::size_t p = 0; p < plans.size(); ++p)
        for (std::size_t i = 0; i < plans[p].items.size(); ++i) {
            const WriteItem& item = plans[p].items[i];
            const ItemPlacement place = layout.placements.at(p).at(i);
            const auto& header = headers.at(place.file);
            const auto entry = std::find_if(header.tensors.begin(), header.tensors.end(),
                                            [&](const auto& t) { return t.name == item.fqn; });
            RC_ASSERT(entry != header.tensors.end());
            RC_ASSERT(entry->dtype == item.dtype);
            RC_ASSERT(entry->data.begin + header.data_begin == place.tensor_begin);
            const bool is_new = used.emplace(place.file, item.fqn).second;
            if (kind == FileLayout::full) {
                RC_ASSERT(entry->shape == item.size);
                RC_ASSERT(layout.weight_map.at(item.fqn) == place.file);
                continue;
            }
            RC_ASSERT(is_new);
            RC_ASSERT(entry->shape == item.chunk.sizes);
            const auto info = nlohmann::json::parse(metadata_value(header, "DCP_SHARDING_INFO"));
            RC_ASSERT(info.size() == header.tensors.size());
            const auto offsets =
                info.at(item.fqn).at("saved_offsets").get<std::vector<std::uint64_t>>();
            RC_ASSERT(std::equal(offsets.begin(), offsets.end(), item.chunk.offsets.begin(),
                                 item.chunk.offsets.end()));
        }
    RC_ASSERT(used.size() == entries);
}

RC_GTEST_PROP(Layout, PlacesPointAtTheirTensors, (std::uint64_t seed)) {
    oracle::Random random(seed);
    const auto plans = oracle::random_save(random, 1 + static_cast<std::uint32_t>(random.below(5)),
                                           random.below(20));
    LayoutOptions options;
    if (random.chance(2))
        for (const SavePlan& plan : plans)
            for (const WriteItem& item : plan.items)
                options.fqn_to_index_mapping.emplace(
                    item.fqn, 1 + static_cast<std::uint32_t>(random.below(4)));
    for (const FileLayout kind : {FileLayout::full, FileLayout::sharded}) {
        options.layout = kind;
        const auto layout = plan_layout(plans, options);
        RC_ASSERT(layout.has_value());
        check_layout(plans, *layout, kind);
    }
}

} // namespace
} // namespace safering::plan
