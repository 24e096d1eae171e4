// Which items wrote the tensors of one file, and the digests of their bytes.
#pragma once

#include <limits>
#include <span>
#include <vector>

#include <safering/plan.hpp>

namespace safering::checkpoint {

/// Lists of extents, one a tensor, kept flat: most of a million tensors have one extent with one digest.
class FileExtents {
  public:
    /// One item of a tensor.
    struct Extent {
        /// Null: the whole tensor.
        const ChunkStorageMetadata* box;
        std::span<const std::uint64_t> digests;
    };

    bool empty() const { return tensors_.empty(); }
    std::size_t tensors() const { return tensors_.size(); }
    /// Extents of the tensor are those from first(tensor) up to first(tensor + 1).
    std::size_t first(std::size_t tensor) const {
        return tensor < tensors_.size() ? tensors_[tensor] : items_.size();
    }
    std::size_t count(std::size_t tensor) const { return first(tensor + 1) - first(tensor); }
    Extent at(std::size_t extent) const {
        const std::size_t begin = extent == 0 ? 0 : items_[extent - 1].digests_end;
        const Item& item = items_[extent];
        return {item.box == whole_tensor ? nullptr : &boxes_[item.box],
                std::span(digests_).subspan(begin, item.digests_end - begin)};
    }

    void reserve(std::size_t tensors) {
        tensors_.reserve(tensors);
        items_.reserve(tensors);
        digests_.reserve(tensors);
    }
    /// The next tensor, as yet without extents.
    void add_tensor() { tensors_.push_back(static_cast<std::uint32_t>(items_.size())); }
    /// Adds to the last tensor.
    void add(const Extent& extent) {
        SAFERING_ASSERT(items_.size() < std::numeric_limits<std::uint32_t>::max());
        std::uint32_t box = whole_tensor;
        if (extent.box != nullptr) {
            box = static_cast<std::uint32_t>(boxes_.size());
            boxes_.push_back(*extent.box);
        }
        digests_.insert(digests_.end(), extent.digests.begin(), extent.digests.end());
        items_.push_back({digests_.size(), box});
    }

    friend bool operator==(const FileExtents&, const FileExtents&) = default;

  private:
    static constexpr std::uint32_t whole_tensor = ~std::uint32_t{0};
    struct Item {
        std::uint64_t digests_end; // in digests_; they begin where the item's before it end
        std::uint32_t box;         // in boxes_
        friend bool operator==(const Item&, const Item&) = default;
    };
    std::vector<std::uint32_t> tensors_; // first item of each
    std::vector<Item> items_;
    std::vector<std::uint64_t> digests_;
    std::vector<ChunkStorageMetadata> boxes_;
};

} // namespace safering::checkpoint
