// Where an item of a prepared save lies in its file; what the writer of its bytes and the writer of its manifest
// must agree on.
#pragma once

#include <safering/plan.hpp>

#include "plan/box.hpp"

namespace safering::checkpoint {

/// Shape of the stored tensor that holds the item, and the item's offsets in it.
struct StoredBox {
    const Shape& stored;
    Shape offsets;
};
inline StoredBox stored_box(const SavePlan& plan, const WriteItem& item) {
    if (plan.storage->layout == FileLayout::full)
        return {item.size, item.chunk.offsets};
    return {item.chunk.sizes, Shape(item.chunk.sizes.size(), 0)};
}

inline Result<plan::FileBox> file_box(const SavePlan& plan, const WriteItem& item) {
    const StoredBox box = stored_box(plan, item);
    auto made = plan::FileBox::make(item.dtype, box.stored, box.offsets, item.chunk.sizes);
    if (!made)
        made.error().tensor = item.fqn;
    return made;
}

} // namespace safering::checkpoint
