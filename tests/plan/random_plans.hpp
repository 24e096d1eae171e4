// Random partitions of tensors and random saves made of them.
#pragma once

#include <random>
#include <string>
#include <vector>

#include <safering/plan.hpp>

#include "oracle.hpp"

namespace safering::plan::oracle {

class Random {
  public:
    explicit Random(std::uint64_t seed) : engine_(seed) {}
    /// In [0, n).
    std::uint64_t below(std::uint64_t n) { return engine_() % n; }
    bool chance(std::uint64_t one_in) { return below(one_in) == 0; }
    template <typename T>
    void shuffle(std::vector<T>& items) {
        std::shuffle(items.begin(), items.end(), engine_);
    }

  private:
    std::mt19937_64 engine_;
};

inline Shape random_shape(Random& random, std::size_t max_rank, std::uint64_t max_extent) {
    Shape shape;
    for (std::size_t rank = random.below(max_rank + 1); rank > 0; --rank)
        shape.push_back(1 + random.below(max_extent));
    return shape;
}

/// Disjoint boxes that cover [0, shape), by cutting boxes in two up to `cuts`
/// times: not only grids.
inline std::vector<ChunkStorageMetadata> random_partition(Random& random, const Shape& shape,
                                                          std::uint64_t cuts) {
    std::vector<ChunkStorageMetadata> boxes{{Shape(shape.size(), 0), shape}};
    for (; cuts > 0 && !shape.empty(); --cuts) {
        const std::size_t b = random.below(boxes.size()), d = random.below(shape.size());
        if (boxes[b].sizes[d] < 2)
            continue;
        const std::uint64_t at = 1 + random.below(boxes[b].sizes[d] - 1);
        ChunkStorageMetadata upper = boxes[b];
        upper.offsets[d] += at;
        upper.sizes[d] -= at;
        boxes[b].sizes[d] = at;
        boxes.push_back(upper);
    }
    random.shuffle(boxes);
    return boxes;
}

/// `names` tensors, each cut and spread over `ranks` ranks.
inline std::vector<SavePlan> random_save(Random& random, std::uint32_t ranks, std::size_t names) {
    constexpr Dtype dtypes[] = {Dtype::u8, Dtype::bf16, Dtype::f32, Dtype::i64, Dtype::boolean};
    std::vector<SavePlan> plans(ranks);
    for (std::uint32_t rank = 0; rank < ranks; ++rank)
        plans[rank].rank = rank;
    for (std::size_t n = 0; n < names; ++n) {
        WriteItem item;
        item.fqn = "layer." + std::to_string(n) + (n % 5 == 0 ? "\"\\\n\xC3\xA9" : ".weight");
        item.dtype = dtypes[random.below(std::size(dtypes))];
        item.size = random_shape(random, 3, 9);
        if (random.chance(10) && !item.size.empty())
            item.size[random.below(item.size.size())] = 0;
        const auto boxes = random_partition(random, item.size, random.below(6));
        item.type = boxes.size() == 1 ? WriteItemType::tensor : WriteItemType::shard;
        for (const auto& box : boxes) {
            item.chunk = box;
            plans[random.below(ranks)].items.push_back(item);
        }
    }
    for (SavePlan& plan : plans)
        random.shuffle(plan.items);
    return plans;
}

} // namespace safering::plan::oracle
