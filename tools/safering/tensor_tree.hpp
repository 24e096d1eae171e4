// Tensors by the parts of their names: "layers.0.weight" is under "layers." and "0.".
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <safering/plan.hpp>

namespace safering::tools {

using NamedStorage = TensorMap::value_type;

struct TensorTree {
    /// Part of a name, with the dot or slash that ends it. Those from the root to a node make its name.
    std::string label{};
    /// At and below this node.
    std::uint64_t tensors = 0;
    std::uint64_t bytes = 0;
    /// "BF16"; "mixed" where there are several.
    std::string dtype{};
    /// The tensor of just this name; null for a part of names.
    const NamedStorage* tensor = nullptr;
    /// Numbers in names in the order of their values. A child is never alone under a node that is no tensor:
    /// such labels are joined, except the root's.
    std::vector<TensorTree> children{};
};

/// The tensors must outlive the tree.
TensorTree make_tree(std::span<const NamedStorage* const> tensors);

/// Whether two nodes differ in nothing but their label.
bool alike(const TensorTree& a, const TensorTree& b);

/// Bytes of the files that hold the tensor.
std::uint64_t stored_bytes(const TensorStorageMetadata& tensor);

} // namespace safering::tools
