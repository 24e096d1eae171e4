// create_global_plan: replicas out, the rest checked, and the metadata of what is left.
#include <safering/planner.hpp>

#include <algorithm>
#include <limits>

#include <fmt/format.h>

#include "large_memory.hpp"
#include "plan/item_names.hpp"
#include "plan/text.hpp"
#include "plan/tiling.hpp"

namespace safering {

namespace {

using plan::in_words;
using plan::ItemReference;

constexpr const char* creating = "create global plan";

// Chunks that several ranks hold: references[begin, end) of the groups, in order of rank.
struct Replicated {
    std::uint64_t bytes;
    std::size_t begin;
    std::size_t end;
};

class GlobalPlanner {
  public:
    GlobalPlanner(std::vector<SavePlan>& plans, plan::ItemNames names)
        : plans_(plans), names_(std::move(names)), groups_(plan::group_by_name(names_)) {}

    Result<Metadata> run() {
        keep_.resize(plans_.size());
        bytes_.resize(plans_.size());
        for (std::size_t p = 0; p < plans_.size(); ++p)
            keep_[p].resize(plans_[p].items.size());
        Metadata metadata;
        reserve_large(metadata.tensors, names_.first_item.size());
        for (std::size_t n = 0; n < names_.first_item.size(); ++n) {
            const WriteItem& first = *names_.first_item[n];
            const auto added = metadata.tensors.emplace_hint(
                metadata.tensors.end(), first.fqn, TensorStorageMetadata{first.dtype, first.size});
            if (auto planned =
                    plan_tensor(groups_.begin[n], groups_.begin[n + 1], added->second.chunks);
                !planned)
                return std::unexpected(std::move(planned.error()));
        }
        assign_replicas();
        return metadata;
    }

    // Borrowed names end here: the items move.
    void drop_replicas() {
        names_ = {};
        for (std::size_t p = 0; p < plans_.size(); ++p) {
            std::vector<WriteItem>& items = plans_[p].items;
            std::size_t kept = 0;
            for (std::size_t i = 0; i < items.size(); ++i) {
                if (!keep_[p][i])
                    continue;
                if (kept != i)
                    items[kept] = std::move(items[i]);
                ++kept;
            }
            items.resize(kept);
            plans_[p].storage.reset(); // it was parallel to the items
        }
    }

  private:
    const WriteItem& item_at(ItemReference reference) const {
        return plans_[reference.plan].items[reference.item];
    }
    std::uint32_t rank_of(std::size_t reference) const {
        return plans_[groups_.references[reference].plan].rank;
    }

    std::unexpected<Error> wrong(Errc code, const WriteItem& item, std::string detail) const {
        auto error = fail(code, creating, std::move(detail));
        error.error().tensor = item.fqn;
        return error;
    }

    // Whole tensors say so consistently, and byte counts stay below 2^63.
    Result<std::uint64_t> element_bits(std::size_t begin, std::size_t end) const {
        const WriteItem& first = item_at(groups_.references[begin]);
        for (std::size_t r = begin; r < end; ++r) {
            const WriteItem& item = item_at(groups_.references[r]);
            if (item.type == WriteItemType::tensor && item.chunk.sizes != item.size)
                return wrong(Errc::plan_shape_mismatch, item,
                             fmt::format("expected an item of type tensor to be the whole of {}, "
                                         "found chunk {} in the plan of rank {}",
                                         in_words(item.size), in_words(item.chunk), rank_of(r)));
        }
        const auto elements = plan::element_count(first.size);
        const std::uint64_t width = bits(first.dtype);
        if (!elements || *elements / 8 > std::numeric_limits<std::int64_t>::max() / width)
            return wrong(Errc::plan_overflow, first,
                         fmt::format("{} {} has 2^63 bytes or more", name(first.dtype),
                                     in_words(first.size)));
        return width;
    }

    // Items [begin, end) of one name; its chunks.
    Result<void> plan_tensor(std::size_t begin, std::size_t end, Chunks& chunks) {
        const auto width = element_bits(begin, end);
        if (!width)
            return std::unexpected(width.error());
        const auto first = groups_.references.begin() + static_cast<std::ptrdiff_t>(begin);
        const auto last = groups_.references.begin() + static_cast<std::ptrdiff_t>(end);
        if (end - begin > 1)
            std::sort(first, last, [&](ItemReference a, ItemReference b) { return before(a, b); });

        // Of each chunk, its first reference.
        boost::container::small_vector<std::size_t, 1> holder;
        for (std::size_t r = begin; r < end;) {
            const ChunkStorageMetadata& chunk = item_at(groups_.references[r]).chunk;
            const std::size_t replicas = r;
            while (r < end && item_at(groups_.references[r]).chunk == chunk)
                ++r;
            chunks.push_back(chunk);
            holder.push_back(replicas);
            // Elements come in eights where they are smaller than a byte.
            const std::uint64_t elements = plan::element_count(chunk.sizes).value_or(0);
            const std::uint64_t bytes = elements / 8 * *width + elements % 8 * *width / 8;
            if (r - replicas == 1)
                keep(replicas, bytes);
            else
                replicated_.push_back({bytes, replicas, r});
        }
        return check_chunks(item_at(*first), chunks, holder);
    }

    // By place, then by rank; the plan's position decides between plans of one rank.
    bool before(ItemReference a, ItemReference b) const {
        const ChunkStorageMetadata &x = item_at(a).chunk, &y = item_at(b).chunk;
        if (x.offsets != y.offsets)
            return x.offsets < y.offsets;
        if (x.sizes != y.sizes)
            return x.sizes < y.sizes;
        if (plans_[a.plan].rank != plans_[b.plan].rank)
            return plans_[a.plan].rank < plans_[b.plan].rank;
        return a.plan != b.plan ? a.plan < b.plan : a.item < b.item;
    }

    Result<void> check_chunks(const WriteItem& item, const Chunks& chunks,
                              std::span<const std::size_t> holder) const {
        const auto fault = plan::find_tiling_fault(item.size, chunks);
        if (!fault)
            return {};
        const auto describe = [&](std::size_t chunk) {
            return fmt::format("{} of rank {}", in_words(chunks[chunk]), rank_of(holder[chunk]));
        };
        return wrong(fault->code, item, in_words(*fault, item.size, describe));
    }

    void keep(std::size_t reference, std::uint64_t bytes) {
        const ItemReference kept = groups_.references[reference];
        keep_[kept.plan][kept.item] = true;
        bytes_[kept.plan] += bytes;
    }

    // Largest first: small ones level out what large ones leave uneven.
    void assign_replicas() {
        std::stable_sort(
            replicated_.begin(), replicated_.end(),
            [](const Replicated& a, const Replicated& b) { return a.bytes > b.bytes; });
        for (const Replicated& chunk : replicated_) {
            std::size_t best = chunk.begin;
            for (std::size_t r = chunk.begin; r < chunk.end; ++r)
                if (bytes_[groups_.references[r].plan] < bytes_[groups_.references[best].plan])
                    best = r;
            keep(best, chunk.bytes);
        }
    }

    std::vector<SavePlan>& plans_;
    plan::ItemNames names_;
    plan::ItemsByName groups_;
    std::vector<Replicated> replicated_;
    std::vector<std::vector<bool>> keep_; // parallel to the plans and their items
    std::vector<std::uint64_t> bytes_;    // of each plan so far
};

} // namespace

Result<GlobalSavePlan> create_global_plan(std::vector<SavePlan> plans) {
    auto names = plan::number_names(plans, creating);
    if (!names)
        return std::unexpected(std::move(names.error()));
    GlobalPlanner planner(plans, std::move(*names));
    auto metadata = planner.run();
    if (!metadata)
        return std::unexpected(std::move(metadata.error()));
    planner.drop_replicas();
    return GlobalSavePlan{std::move(plans), std::move(*metadata)};
}

} // namespace safering
