// The check rests on signed corners. Give each of the 2^d corners of a box [a, b) the sign
// (-1)^(number of coordinates taken from a). Summing these signs over all points "below" a point
// gives 1 inside the box and 0 outside, so the signs of a set of boxes, added up, determine how
// often each point is covered, and equal those of the whole if and only if every point is covered
// once. Adding them up is a sort.
//
// Where that would be too many corners (many dimensions are split at once), each edge gets a secret
// random number modulo a prime, and a corner counts as its sign times the product of its edges'
// numbers. The sum over a box's corners is then the product, over the dimensions, of b's number
// less a's, and the boxes' sums add up to the whole's where they tile it. Where they do not, a
// polynomial of degree d that is not zero would have to vanish at a random point: a chance of d in
// 2^61 (Schwartz and Zippel).
//
// A fault is found by halving: of two halves of a region that is not tiled, one is not tiled.
#include "plan/tiling.hpp"

#include <algorithm>
#include <limits>
#include <random>
#include <vector>

#include <xxhash.h>

#include <safering/planner.hpp>

#include "plan/text.hpp"

namespace safering::plan {

namespace {

// Above it corners are not listed: 2^22 of 16 bytes are 64 MiB.
constexpr std::size_t max_corners = std::size_t{1} << 22;

__extension__ using Wide = unsigned __int128;

// Arithmetic modulo the prime 2^61 - 1.
constexpr std::uint64_t prime = (std::uint64_t{1} << 61) - 1;
std::uint64_t plus(std::uint64_t a, std::uint64_t b) {
    return (a + b) % prime;
}
std::uint64_t times(std::uint64_t a, std::uint64_t b) {
    return static_cast<std::uint64_t>(static_cast<Wide>(a) * b % prime);
}

std::uint64_t secret_seed() {
    std::random_device random;
    return static_cast<std::uint64_t>(random()) << 32 | random();
}

// The random number of an edge of dimension d.
std::uint64_t number_of(std::uint64_t edge, std::size_t d, std::uint64_t seed) {
    const std::uint64_t input[2] = {edge, d};
    return XXH3_64bits_withSeed(input, sizeof(input), seed) % prime;
}

// [begin, end), not empty.
struct Region {
    Shape begin;
    Shape end;
};

class Tiling {
  public:
    explicit Tiling(std::span<const ChunkStorageMetadata> chunks) : chunks_(chunks) {}

    // `inside`: the chunks that share elements with the region.
    bool is_tiled(const Region& region, const std::vector<std::uint32_t>& inside) const;
    TilingFault fault(Region region, std::vector<std::uint32_t> inside) const;

  private:
    // The chunk's bounds along d, cut to the region.
    std::pair<std::uint64_t, std::uint64_t> bounds(std::uint32_t chunk, std::size_t d,
                                                   const Region& region) const {
        const std::uint64_t begin = chunks_[chunk].offsets[d];
        return {std::max(begin, region.begin[d]),
                std::min(begin + chunks_[chunk].sizes[d], region.end[d])};
    }
    // Along one dimension: where chunks begin and end, with the region's own bounds; two
    // where none ends inside.
    std::vector<std::uint64_t> edges(std::size_t d, const Region& region,
                                     const std::vector<std::uint32_t>& inside) const;
    bool corners_cancel(const Region& region, const std::vector<std::uint32_t>& inside,
                        const std::vector<std::size_t>& split,
                        const std::vector<std::vector<std::uint64_t>>& edges) const;
    bool sides_agree(const Region& region, const std::vector<std::uint32_t>& inside,
                     const std::vector<std::size_t>& split) const;
    // Cuts the region in two where chunks end, as evenly as they do.
    struct Half {
        Region region;
        std::vector<std::uint32_t> inside;
    };
    std::pair<Half, Half> halve(const Region& region, const std::vector<std::uint32_t>& inside,
                                std::size_t d, const std::vector<std::uint64_t>& edges) const;

    std::span<const ChunkStorageMetadata> chunks_;
};

std::vector<std::uint64_t> Tiling::edges(std::size_t d, const Region& region,
                                         const std::vector<std::uint32_t>& inside) const {
    std::vector<std::uint64_t> edges{region.begin[d], region.end[d]};
    for (const std::uint32_t chunk : inside) {
        const auto [begin, end] = bounds(chunk, d, region);
        // Neighbours repeat each other's edges: most of them need not be sorted.
        if (begin != region.begin[d] && begin != edges.back())
            edges.push_back(begin);
        if (end != region.end[d] && end != edges.back())
            edges.push_back(end);
    }
    std::sort(edges.begin(), edges.end());
    edges.erase(std::unique(edges.begin(), edges.end()), edges.end());
    return edges;
}

bool Tiling::corners_cancel(const Region& region, const std::vector<std::uint32_t>& inside,
                            const std::vector<std::size_t>& split,
                            const std::vector<std::vector<std::uint64_t>>& edges) const {
    struct Corner {
        std::uint64_t place; // its edges' numbers as digits
        std::int64_t sign;
    };
    std::vector<Corner> corners;
    corners.reserve((inside.size() + 1) << split.size());
    // A box is the product of its sides, so its corners are made one dimension at a time.
    const auto add = [&](const auto& bounds_of, std::int64_t sign) {
        const std::size_t first = corners.size();
        corners.push_back({0, sign});
        for (const std::size_t d : split) {
            const auto [begin, end] = bounds_of(d);
            const auto number = [&](std::uint64_t edge) {
                return static_cast<std::uint64_t>(
                    std::lower_bound(edges[d].begin(), edges[d].end(), edge) - edges[d].begin());
            };
            const std::uint64_t low = number(begin), high = number(end), base = edges[d].size();
            for (std::size_t c = first, last = corners.size(); c < last; ++c) {
                const Corner corner = corners[c];
                corners[c] = {corner.place * base + low, -corner.sign};
                corners.push_back({corner.place * base + high, corner.sign});
            }
        }
    };
    for (const std::uint32_t chunk : inside)
        add([&](std::size_t d) { return bounds(chunk, d, region); }, 1);
    add([&](std::size_t d) { return std::pair{region.begin[d], region.end[d]}; }, -1);
    std::sort(corners.begin(), corners.end(),
              [](const Corner& a, const Corner& b) { return a.place < b.place; });
    for (std::size_t i = 0; i < corners.size();) {
        const std::uint64_t place = corners[i].place;
        std::int64_t sum = 0;
        for (; i < corners.size() && corners[i].place == place; ++i)
            sum += corners[i].sign;
        if (sum != 0)
            return false;
    }
    return true;
}

bool Tiling::sides_agree(const Region& region, const std::vector<std::uint32_t>& inside,
                         const std::vector<std::size_t>& split) const {
    static const std::uint64_t seed = secret_seed();
    const auto add_box = [&](const auto& bounds_of, std::uint64_t sum) {
        std::uint64_t product = 1;
        for (const std::size_t d : split) {
            const auto [begin, end] = bounds_of(d);
            product =
                times(product, plus(number_of(end, d, seed), prime - number_of(begin, d, seed)));
        }
        return plus(sum, product);
    };
    std::uint64_t sum = 0;
    for (const std::uint32_t chunk : inside)
        sum = add_box([&](std::size_t d) { return bounds(chunk, d, region); }, sum);
    return sum ==
           add_box([&](std::size_t d) { return std::pair{region.begin[d], region.end[d]}; }, 0);
}

std::pair<Tiling::Half, Tiling::Half> Tiling::halve(const Region& region,
                                                    const std::vector<std::uint32_t>& inside,
                                                    std::size_t d,
                                                    const std::vector<std::uint64_t>& edges) const {
    const std::uint64_t cut = edges[edges.size() / 2]; // of three or more: strictly inside
    std::pair<Half, Half> halves{{region, {}}, {region, {}}};
    halves.first.region.end[d] = cut;
    halves.second.region.begin[d] = cut;
    for (const std::uint32_t chunk : inside) {
        const auto [begin, end] = bounds(chunk, d, region);
        if (begin < cut)
            halves.first.inside.push_back(chunk);
        if (end > cut)
            halves.second.inside.push_back(chunk);
    }
    return halves;
}

bool Tiling::is_tiled(const Region& region, const std::vector<std::uint32_t>& inside) const {
    std::vector<std::vector<std::uint64_t>> all_edges;
    std::vector<std::size_t> split;
    bool places_fit = true; // in 64 bits
    std::uint64_t places = 1;
    for (std::size_t d = 0; d < region.begin.size(); ++d) {
        all_edges.push_back(edges(d, region, inside));
        if (all_edges[d].size() == 2)
            continue;
        split.push_back(d);
        places_fit &= !__builtin_mul_overflow(places, all_edges[d].size(), &places);
    }
    if (split.empty())
        return inside.size() == 1; // each covers the whole region
    if (places_fit && split.size() < 22 && inside.size() + 1 <= max_corners >> split.size())
        return corners_cancel(region, inside, split, all_edges);
    return sides_agree(region, inside, split);
}

TilingFault Tiling::fault(Region region, std::vector<std::uint32_t> inside) const {
    for (;;) {
        std::size_t widest = 0;
        std::vector<std::uint64_t> widest_edges;
        for (std::size_t d = 0; d < region.begin.size(); ++d)
            if (auto found = edges(d, region, inside); found.size() > widest_edges.size()) {
                widest = d;
                widest_edges = std::move(found);
            }
        if (widest_edges.size() <= 2)
            break; // every chunk that is here covers the whole region
        auto [low, high] = halve(region, inside, widest, widest_edges);
        Half& bad = is_tiled(low.region, low.inside) ? high : low;
        region = std::move(bad.region);
        inside = std::move(bad.inside);
    }
    SAFERING_ASSERT(inside.size() != 1);
    if (inside.empty())
        return {.code = Errc::plan_hole, .element = region.begin};
    return {.code = Errc::plan_overlap,
            .first = inside[0],
            .second = inside[1],
            .element = region.begin};
}

} // namespace

std::optional<std::uint64_t> element_count(const Shape& shape) {
    std::uint64_t count = 1;
    bool empty = false;
    for (const std::uint64_t extent : shape) {
        empty |= extent == 0;
        if (extent != 0 && (__builtin_mul_overflow(count, extent, &count) ||
                            count > std::numeric_limits<std::int64_t>::max()))
            return std::nullopt;
    }
    return empty ? 0 : count;
}

std::string in_words(const TilingFault& fault, const Shape& size,
                     const std::function<std::string(std::size_t)>& describe) {
    const std::string tensor = "a tensor of shape " + in_words(size);
    switch (fault.code) {
    case Errc::plan_overflow: return tensor + " has 2^63 elements or more";
    case Errc::plan_hole:
        return "element " + in_words(fault.element) + " of " + tensor + " is in no chunk";
    case Errc::plan_overlap:
        return "element " + in_words(fault.element) + " of " + tensor + " is in chunks " +
               describe(fault.first) + " and " + describe(fault.second);
    case Errc::plan_shape_mismatch:
        return "expected the rank of " + tensor + ", found chunk " + describe(fault.first);
    default: return "chunk " + describe(fault.first) + " reaches outside " + tensor;
    }
}

std::optional<TilingFault> find_tiling_fault(const Shape& size,
                                             std::span<const ChunkStorageMetadata> chunks) {
    SAFERING_ASSERT(chunks.size() < std::numeric_limits<std::uint32_t>::max());
    const auto elements = element_count(size);
    if (!elements)
        return TilingFault{.code = Errc::plan_overflow};
    std::vector<std::uint32_t> filled; // the chunks that have elements
    for (std::size_t c = 0; c < chunks.size(); ++c) {
        const Shape &offsets = chunks[c].offsets, &sizes = chunks[c].sizes;
        if (offsets.size() != size.size() || sizes.size() != size.size())
            return TilingFault{.code = Errc::plan_shape_mismatch, .first = c};
        bool empty = false;
        for (std::size_t d = 0; d < size.size(); ++d) {
            if (sizes[d] > size[d] || offsets[d] > size[d] - sizes[d])
                return TilingFault{.code = Errc::plan_out_of_bounds, .first = c};
            empty |= sizes[d] == 0;
        }
        if (!empty && (chunks.size() > 1 || sizes != size))
            filled.push_back(static_cast<std::uint32_t>(c));
        else if (!empty)
            return std::nullopt; // one chunk that is the tensor: most tensors
    }
    if (*elements == 0)
        return std::nullopt;
    const Region whole{Shape(size.size(), 0), size};
    const Tiling tiling(chunks);
    if (tiling.is_tiled(whole, filled))
        return std::nullopt;
    return tiling.fault(whole, std::move(filled));
}

} // namespace safering::plan

namespace safering {

Result<void> check_tiling(std::string_view name, const Shape& size,
                          std::span<const ChunkStorageMetadata> chunks) {
    const auto fault = plan::find_tiling_fault(size, chunks);
    if (!fault)
        return {};
    auto error =
        fail(fault->code, "check chunks", plan::in_words(*fault, size, [&](std::size_t chunk) {
                 return plan::in_words(chunks[chunk]);
             }));
    error.error().tensor = name;
    return error;
}

} // namespace safering
