// A made-up Llama: realistic names and shapes at any size, so that a benchmark needs no download.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <safering/tensor.hpp>

namespace safering::tools {

struct ModelTensor {
    std::string fqn;
    Shape shape;
};

/// bf16 tensors of about `bytes` bytes in total: embedding, at least one layer, norm and head. The
/// hidden size grows with the model, so that large and small tensors keep the proportion they have
/// in real ones.
std::vector<ModelTensor> made_up_llama(std::uint64_t bytes);

/// bf16 matrices with rows of `row_bytes`, of `tensor_bytes` each (rounded down to whole rows, at least one), about
/// `bytes` in total: what many small experts, adapters or optimizer states cost, and what narrow rows do.
std::vector<ModelTensor> equal_tensors(std::uint64_t bytes, std::uint64_t tensor_bytes,
                                       std::uint64_t row_bytes);

/// Where rank `rank` of `ranks` holds its part of a tensor cut along `dimension`.
struct Shard {
    Shape offsets;
    Shape sizes;

    bool empty() const;
};

/// Equal parts, the last ones smaller or empty, as torch.chunk makes them. A tensor without the
/// dimension is replicated: every rank holds the whole.
Shard shard_of(const Shape& shape, unsigned dimension, unsigned rank, unsigned ranks);

} // namespace safering::tools
