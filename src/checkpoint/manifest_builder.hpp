// Write results of all ranks -> the manifest, checked against the plan. Pure.
#pragma once

#include <vector>

#include "checkpoint/manifest.hpp"
#include "plan/layout.hpp"

namespace safering::checkpoint {

/// `plans` as prepare_global_plan gave them out, rank i at place i; `layout` parallel to them. The results
/// must cover the plan exactly once: one WriteResults a rank (a rank without items may be left out), its
/// items those of the plan in their order, all of this attempt. Takes the digests out of them. Errors: checkpoint_results_mismatch,
/// checkpoint_foreign_attempt, naming rank and tensor.
Result<Manifest> build_manifest(const std::vector<SavePlan>& plans, const plan::Layout& layout,
                                std::vector<WriteResults>& results);

} // namespace safering::checkpoint
