// Whether the memory behind an item is what the plan says of it.
#pragma once

#include <safering/planner.hpp>

namespace safering::checkpoint {

/// `planned` of a rank's plan. Errors: plan_shape_mismatch, naming rank and tensor.
Result<void> check_source(std::uint32_t rank, const WriteItem& planned, const TensorView& source);

} // namespace safering::checkpoint
