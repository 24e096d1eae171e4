// A rank's part of a save, copied: from the caller's memory into staging memory that lies as the files do. What
// write_data needs of it afterwards is a planner.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include <safering/planner.hpp>

#include "plan/box.hpp"
#include "plan/layout.hpp"
#include "plan/staging_layout.hpp"

namespace safering::checkpoint {

/// Bytes that become a dense row-major tensor at `to`.
struct StagingPiece {
    std::byte* to = nullptr;
    const std::byte* from = nullptr;
    plan::BoxCopy copy;
};
/// `view` at `to`. Errors: those of BoxCopy::make.
Result<StagingPiece> make_staging_piece(std::byte* to, const TensorView& view);
/// By this thread and a few more; has ended when it returns.
void copy_pieces(std::span<const StagingPiece> pieces);
/// What the planner has of the items of `rank`, to their places. Errors: plan_shape_mismatch, what the planner says.
Result<void> copy_items(std::uint32_t rank, std::span<const WriteItem> items,
                        std::span<std::byte* const> places, SavePlanner& planner);

/// How staging memory for a plan will lie if the other ranks hold tensors of the same names: for copies that are made
/// before the ranks have planned. Nothing depends on it but speed. Errors: those of plan_layout.
Result<plan::StagingLayout> expect_staging_layout(const SavePlan& plan, FileLayout layout,
                                                  const plan::FqnToIndexMapping& mapping);

class StagedCopy final : public SavePlanner {
  public:
    /// Memory for the items of `plan`, whose storage must be set. Errors: ENOMEM, those of FileBox::make.
    static Result<std::shared_ptr<StagedCopy>> make(const SavePlan& plan);

    /// Where each item of the plan goes, dense and row-major.
    std::span<std::byte* const> places() const { return places_; }
    /// Asked once an item, in plan order, any number of times over.
    Result<TensorView> resolve_data(const WriteItem& item) override;

  private:
    std::shared_ptr<std::byte> memory_;
    std::vector<std::byte*> places_;
    std::size_t next_ = 0;
};

} // namespace safering::checkpoint
