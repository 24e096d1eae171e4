// A prepared save and then its write results -> the manifest. Pure.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/manifest.hpp"
#include "plan/layout.hpp"

namespace safering::checkpoint {

/// Keeps what the results must say, and nothing else of the plans: the coordinator of a save has no second
/// copy of everybody's items while the data is written.
class ManifestBuilder {
  public:
    /// `plans` as prepare_global_plan gives them out, rank i at place i; `layout` is theirs.
    ManifestBuilder(const std::vector<SavePlan>& plans, const plan::Layout& layout);

    /// What the digests of the plan's extents will take in the manifest's text.
    std::uint64_t digest_text_bytes() const { return digest_text_bytes_; }

    /// The results must cover the plan exactly once: one WriteResults a rank (a rank without items may be
    /// left out), its items those of the plan in their order, all of this attempt. May be called once.
    /// Errors: checkpoint_results_mismatch, checkpoint_foreign_attempt, naming rank and tensor.
    Result<Manifest> build(const std::vector<WriteResults>& results);

  private:
    struct Item {
        std::uint32_t file; // of the manifest
        std::uint32_t cells;
        std::uint64_t tensor_begin;
        std::uint64_t bytes;
        std::uint64_t length; // of the stored tensor
        std::size_t name_end; // in names_; it begins where the item's before it ends
        std::uint32_t box;    // in boxes_; whole_tensor for one that is all of its tensor
        std::uint32_t dimensions;
    };
    static constexpr std::uint32_t whole_tensor = ~std::uint32_t{0};
    struct Entry {
        std::size_t item;
        const Digests* digests;
    };

    std::string_view name_of(std::size_t item) const;
    bool is_planned(std::size_t item, const MetadataIndex& index) const;
    Result<std::vector<const WriteResults*>>
    by_rank(const std::vector<WriteResults>& results) const;
    Result<void> check_rank(std::uint32_t rank, const WriteResults& results) const;
    Result<void> check_bytes(std::uint32_t rank, std::size_t item, const WriteResult& result) const;
    Result<void> join_pieces(const std::vector<const WriteResults*>& ranks);

    Manifest manifest_; // without what is in the results
    std::string names_;
    std::vector<ChunkStorageMetadata> boxes_;
    std::vector<Item> items_;
    std::uint64_t digest_text_bytes_ = 0;
    std::vector<std::size_t> rank_begin_;   // in items_, and the end behind them
    std::map<std::size_t, Digests> joined_; // of items that several ranks wrote, by item
};

} // namespace safering::checkpoint
