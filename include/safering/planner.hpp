// Planning for programs that have no DCP: what each rank holds -> plans that save or load it.
// Pure: no file is touched and no thread started.
#pragma once

#include <vector>

#include <safering/plan.hpp>

namespace safering {

/// A rank's part of a tensor, to be saved. `data.shape` is the shape of the part.
struct LocalTensor {
    TensorName fqn;
    TensorView data;
    /// The global shape; empty together with `offsets` means that `data` is the whole tensor.
    Shape size{};
    /// Place of the part's first element in the global tensor.
    Shape offsets{};
};

/// A rank's part of a tensor, to be filled.
struct LocalDestination {
    TensorName fqn;
    MutableTensorView data;
    Shape size{};
    Shape offsets{};
};

/// Gives write_data the memory behind an item; called on the thread that calls write_data, once an item,
/// in plan order.
class SAFERING_API SavePlanner {
  public:
    virtual ~SavePlanner();
    virtual Result<TensorView> resolve_data(const WriteItem& item) = 0;
};

/// Gives read_data the memory for an item: a view of exactly item.lengths. Called on the thread that calls
/// read_data, in plan order; commit_tensor follows on the same thread when the bytes are in place.
class SAFERING_API LoadPlanner {
  public:
    virtual ~LoadPlanner();
    virtual Result<MutableTensorView> resolve_tensor(const ReadItem& item) = 0;
    virtual Result<void> commit_tensor(const ReadItem& item);
};

/// Plans what a rank holds. The memory must stay in place and unchanged until the save has ended.
class SAFERING_API DefaultSavePlanner final : public SavePlanner {
  public:
    explicit DefaultSavePlanner(std::vector<LocalTensor> tensors, std::uint32_t rank = 0);
    SavePlan create_local_plan() const;
    Result<TensorView> resolve_data(const WriteItem& item) override;

  private:
    std::vector<LocalTensor> tensors_;
    std::vector<std::uint32_t> order_; // of them, by (fqn, offsets)
    std::uint32_t rank_;
    std::size_t next_ = 0; // where resolve_data looks first, in order_
};

class SAFERING_API DefaultLoadPlanner final : public LoadPlanner {
  public:
    explicit DefaultLoadPlanner(std::vector<LocalDestination> tensors);
    /// Items for every byte of every destination. Errors: checkpoint_tensor_missing, plan_shape_mismatch
    /// (size, rank or dtype), checkpoint_incomplete where the stored chunks leave a part uncovered.
    Result<LoadPlan> create_local_plan(const Metadata& metadata) const;
    Result<MutableTensorView> resolve_tensor(const ReadItem& item) override;

  private:
    std::vector<LocalDestination> tensors_;
    std::vector<std::uint32_t> order_; // of them, by (fqn, offsets)
    std::size_t next_ = 0;             // where resolve_tensor looks first, in order_
};

struct GlobalSavePlan {
    /// In the order given; a replicated item is left in exactly one of them.
    std::vector<SavePlan> plans;
    Metadata metadata;
};

/// Drops replicas (each chunk stays with the rank that has the fewest bytes so far, the lowest rank on a tie; what one
/// rank alone holds is counted first, then replicas from the largest down) and checks that the chunks of every tensor
/// agree on dtype and size, lie inside it and cover it exactly. The metadata lists a tensor's chunks by offset.
/// O(n log n) in the items. Errors: plan_hole, plan_overlap, plan_out_of_bounds, plan_shape_mismatch, plan_overflow,
/// each naming the tensor, the boxes and the ranks.
SAFERING_API Result<GlobalSavePlan> create_global_plan(std::vector<SavePlan> plans);

/// Whether boxes tile [0, size) exactly (boxes without elements aside); the check behind create_global_plan and the
/// reader, for one tensor. `name` goes into the error.
SAFERING_API Result<void> check_tiling(std::string_view name, const Shape& size,
                                       std::span<const ChunkStorageMetadata> chunks);

} // namespace safering
