// What the planners do first with the parts of tensors that a rank holds or wants.
#pragma once

#include <vector>

#include <safering/planner.hpp>

namespace safering::plan {

/// Fills in size and offsets of whole tensors, and brings the names together: a trainer's lie between its tensors, each
/// on a page of its own.
template <typename Part>
void complete(std::vector<Part>& parts) {
    TensorNames names;
    for (Part& part : parts) {
        part.fqn = names.add(part.fqn);
        if (part.size.empty() && part.offsets.empty()) {
            part.size = part.data.shape;
            part.offsets.assign(part.size.size(), 0);
        }
    }
}

} // namespace safering::plan
