// What `safering inspect --json` prints.
#pragma once

#include <span>

#include <safering/checkpoint.hpp>

#include "command.hpp"
#include "tensor_tree.hpp"

namespace safering::tools {

/// Of these tensors, which are the info's own.
Json to_json(const CheckpointInfo& info, std::span<const NamedStorage* const> tensors);

/// `depth` levels, of which the node is the first; 0: all.
Json to_json(const TensorTree& node, std::uint32_t depth);

} // namespace safering::tools
