#include <array>
#include <span>

#include <fmt/format.h>

#include "../checkpoint/model.hpp"
#include "checkpoint/commit.hpp"
#include "checkpoint/index.hpp"
#include "checkpoint/manifest.hpp"
#include "io/staging_pool.hpp"
#include "plan/layout.hpp"
#include "plan/request_planner.hpp"
#include "safetensors/header.hpp"
#include "scenarios.hpp"

namespace safering::test {

namespace {

// Escapes and free fields, so that the slow way through the header is taken as well.
const std::string header_text =
    R"({"__metadata__":{"format":"pt","note":"a \u00e9 and a rather long value that needs memory"},)"
    R"("model.layers.0.attention.weight":{"dtype":"F32","shape":[4,4],"data_offsets":[0,64]},)"
    R"("model.layers.0.attention.b\u0069as":{"dtype":"BF16","shape":[8],"data_offsets":[64,80]}})";

Result<void> parse_headers() {
    auto parsed =
        safetensors::parse_header(header_text, 8 + header_text.size() + 80, "a.safetensors");
    if (!parsed)
        return std::unexpected(std::move(parsed.error()));
    std::vector<safetensors::TensorEntryView> views;
    for (const safetensors::TensorEntry& tensor : parsed->tensors)
        views.push_back({tensor.name, tensor.dtype, tensor.shape, tensor.data});
    auto written = safetensors::write_header(views, parsed->metadata);
    if (!written)
        return std::unexpected(std::move(written.error()));
    auto again = safetensors::parse_header(std::string_view(*written).substr(8),
                                           written->size() + 80, "a.safetensors");
    if (!again)
        return std::unexpected(std::move(again.error()));
    return {};
}

Result<void> parse_bad_header() {
    const auto parsed = safetensors::parse_header(R"({"a":{"dtype":"F32","shape":[4,4,4,4]}})", 100,
                                                  "a file with a rather long name.safetensors");
    if (parsed)
        return fail(Errc::checkpoint_conflict, "parse", "it was taken");
    return parsed.error().code == Errc::header_missing_field ? Result<void>()
                                                             : std::unexpected(parsed.error());
}

Result<void> plan_everything() {
    static const Model model{make_tensor("a.weight", Dtype::f32, {6, 5}, 1),
                             make_tensor("a.bias", Dtype::u8, {7}, 2)};
    const Sharding sharding{.ranks = 2, .dimension = 1};
    std::vector<SavePlan> plans;
    for (std::uint32_t rank = 0; rank < sharding.ranks; ++rank) {
        const Rank part = cut(model, sharding, rank);
        DefaultSavePlanner planner(part.tensors, rank);
        auto plan = save_plan_from_bytes(to_bytes(planner.create_local_plan()));
        if (!plan)
            return std::unexpected(std::move(plan.error()));
        plans.push_back(std::move(*plan));
    }
    auto global = create_global_plan(std::move(plans));
    if (!global)
        return std::unexpected(std::move(global.error()));
    auto metadata = metadata_from_bytes(to_bytes(global->metadata));
    if (!metadata)
        return std::unexpected(std::move(metadata.error()));
    auto layout = plan::plan_layout(global->plans, {});
    if (!layout)
        return std::unexpected(std::move(layout.error()));
    std::vector<plan::FileSpan> spans;
    for (std::uint32_t i = 0; i < 8; ++i)
        spans.push_back({{i * 5000, i * 5000 + 4000}, i, false});
    const auto requests = plan::RequestPlanner(1 << 14).plan_reads(spans);
    for (const plan::CellRequest& request : requests.requests)
        (void)plan::read_transfers(std::span(&request.range, 1), 4096, 0);
    return {};
}

constexpr std::string_view index_text =
    R"({"metadata":{"total_size":80},"weight_map":{"model.layers.0.attention.weight":"model.safetensors"}})";

Result<void> parse_records() {
    const checkpoint::RedoRecord record{.attempt = "0123456789abcdef0123456789abcdef",
                                        .directory = ".step.0123456789abcdef0123456789abcdef.tmp",
                                        .move = {"model-00001-of-00001.safetensors"},
                                        .remove = {"model-00001-of-00002.safetensors"}};
    auto redo = checkpoint::parse_redo_record(checkpoint::to_text(record), "redo");
    if (!redo)
        return std::unexpected(std::move(redo.error()));
    auto index = checkpoint::parse_index(index_text, "index");
    if (!index)
        return std::unexpected(std::move(index.error()));
    return {};
}

// Two layouts: a full one has an index, a sharded one boxes and tensors.
Result<void> parse_manifests() {
    checkpoint::ManifestFile file{.name = "model-00001-of-00001.safetensors",
                                  .file_bytes = 4096,
                                  .data_begin = 512,
                                  .head_digest = 1};
    const std::array<std::uint64_t, 2> digests{1, ~std::uint64_t{0}};
    file.extents.add_tensor();
    file.extents.add({nullptr, digests});
    checkpoint::Manifest manifest{.attempt = "0123456789abcdef0123456789abcdef",
                                  .chunk_bytes = 4096,
                                  .files = {file, file},
                                  .index = checkpoint::ManifestIndex{80, 1}};
    manifest.files[1].name = "model-00002-of-00002.safetensors";
    const ChunkStorageMetadata box{.offsets = {4, 0}, .sizes = {4, 8}};
    checkpoint::Manifest sharded = manifest;
    sharded.layout = FileLayout::sharded;
    sharded.index.reset();
    sharded.files.resize(1);
    sharded.files[0].extents = {};
    sharded.files[0].extents.add_tensor();
    sharded.files[0].extents.add({&box, digests});
    sharded.tensors["model.layers.0.attention.weight"] = {Dtype::f32, {8, 8}};
    for (const checkpoint::Manifest* each : {&manifest, &sharded}) {
        auto parsed = checkpoint::parse_manifest(checkpoint::to_text(*each), "manifest");
        if (!parsed)
            return std::unexpected(std::move(parsed.error()));
        if (*parsed != *each)
            return fail(Errc::checkpoint_conflict, "parse", "another manifest came back");
    }
    return {};
}

// A new segment, then the one that waits.
Result<void> lend_staging_memory() {
    io::StagingPool pool;
    for (int i = 0; i < 2; ++i)
        if (auto lent = pool.take(100); !lent)
            return std::unexpected(std::move(lent.error()));
    return {};
}

} // namespace

std::vector<AllocationScenario> pure_scenarios() {
    return {{.name = "headers read and written", .run = parse_headers},
            {.name = "a bad header refused", .run = parse_bad_header},
            {.name = "an index and a redo record read", .run = parse_records},
            {.name = "manifests written and read", .run = parse_manifests},
            {.name = "a save planned", .run = plan_everything},
            {.name = "staging memory lent", .run = lend_staging_memory}};
}

} // namespace safering::test
