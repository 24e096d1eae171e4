#include "bench_model.hpp"

#include <algorithm>
#include <array>

#include <fmt/format.h>

namespace safering::tools {

namespace {

constexpr std::uint64_t element_bytes = 2;

// The proportions of Llama 3: grouped-query attention with a quarter of the heads for keys and
// values, and a feed-forward of 3.5 hidden sizes.
struct Dimensions {
    std::uint64_t hidden;

    std::uint64_t key_value() const { return hidden / 4; }
    std::uint64_t intermediate() const { return hidden / 2 * 7; }
    // Kept in proportion for tiny models, where a full vocabulary would be all there is.
    std::uint64_t vocabulary() const { return std::min<std::uint64_t>(32000, hidden * 8); }
    std::uint64_t embedding_bytes() const { return 2 * vocabulary() * hidden * element_bytes; }
    std::uint64_t layer_bytes() const {
        return (2 * hidden * hidden + 2 * key_value() * hidden + 3 * intermediate() * hidden +
                2 * hidden) *
               element_bytes;
    }
};

Dimensions dimensions_for(std::uint64_t bytes) {
    constexpr std::array<std::uint64_t, 7> hidden_sizes{8192, 4096, 2048, 1024, 512, 256, 64};
    // Fewer layers than this and the embedding outweighs them, unlike in any real model.
    constexpr std::uint64_t layers = 6;
    for (const std::uint64_t hidden : hidden_sizes) {
        const Dimensions candidate{hidden};
        if (candidate.embedding_bytes() + layers * candidate.layer_bytes() <= bytes)
            return candidate;
    }
    return {hidden_sizes.back()};
}

void add_layer(std::vector<ModelTensor>& model, std::uint64_t index, const Dimensions& d) {
    const auto add = [&](const char* part, Shape shape) {
        model.push_back({fmt::format("model.layers.{}.{}.weight", index, part), std::move(shape)});
    };
    add("input_layernorm", {d.hidden});
    add("self_attn.q_proj", {d.hidden, d.hidden});
    add("self_attn.k_proj", {d.key_value(), d.hidden});
    add("self_attn.v_proj", {d.key_value(), d.hidden});
    add("self_attn.o_proj", {d.hidden, d.hidden});
    add("post_attention_layernorm", {d.hidden});
    add("mlp.gate_proj", {d.intermediate(), d.hidden});
    add("mlp.up_proj", {d.intermediate(), d.hidden});
    add("mlp.down_proj", {d.hidden, d.intermediate()});
}

} // namespace

std::vector<ModelTensor> made_up_llama(std::uint64_t bytes) {
    const Dimensions d = dimensions_for(bytes);
    const std::uint64_t rest = bytes - std::min(bytes, d.embedding_bytes());
    const std::uint64_t layers =
        std::max<std::uint64_t>(1, (rest + d.layer_bytes() / 2) / d.layer_bytes());

    std::vector<ModelTensor> model;
    model.push_back({"model.embed_tokens.weight", {d.vocabulary(), d.hidden}});
    for (std::uint64_t i = 0; i < layers; ++i)
        add_layer(model, i, d);
    model.push_back({"model.norm.weight", {d.hidden}});
    model.push_back({"lm_head.weight", {d.vocabulary(), d.hidden}});
    return model;
}

std::vector<ModelTensor> equal_tensors(std::uint64_t bytes, std::uint64_t tensor_bytes,
                                       std::uint64_t row_bytes) {
    const std::uint64_t columns = std::max<std::uint64_t>(1, row_bytes / element_bytes);
    const std::uint64_t rows = std::max<std::uint64_t>(1, tensor_bytes / (columns * element_bytes));
    const std::uint64_t count =
        std::max<std::uint64_t>(1, bytes / (rows * columns * element_bytes));
    std::vector<ModelTensor> model;
    for (std::uint64_t i = 0; i < count; ++i)
        model.push_back({fmt::format("model.layers.{}.mlp.experts.{}.weight", i / 64, i % 64),
                         {rows, columns}});
    return model;
}

bool Shard::empty() const {
    return std::ranges::find(sizes, 0u) != sizes.end();
}

Shard shard_of(const Shape& shape, unsigned dimension, unsigned rank, unsigned ranks) {
    Shard shard{Shape(shape.size(), 0), shape};
    if (dimension >= shape.size())
        return shard;
    const std::uint64_t extent = shape[dimension];
    const std::uint64_t part = (extent + ranks - 1) / ranks;
    const std::uint64_t begin = std::min(extent, part * rank);
    shard.offsets[dimension] = begin;
    shard.sizes[dimension] = std::min(extent - begin, part);
    return shard;
}

} // namespace safering::tools
