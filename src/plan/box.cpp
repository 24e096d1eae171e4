// Where boxes lie, in the file and in memory: shapes and strides, checked, to runs and loops over them.
#include "plan/box.hpp"

#include <limits>
#include <optional>

#include <fmt/format.h>

#include "plan/text.hpp"

namespace safering::plan {

namespace {

constexpr std::uint64_t max_extent = std::numeric_limits<std::int64_t>::max();

// A dimension with more than one step, strides in units.
struct Dimension {
    std::uint64_t count;
    std::uint64_t file_stride;
    std::int64_t memory_stride;
};

// What both kinds of box start from. The unit is a byte, or a bit where the dtype has elements
// smaller than a byte; every number is checked to stay below 2^63.
struct Geometry {
    std::uint64_t unit_bits = 8;
    std::uint64_t element_units = 1;
    std::uint64_t begin = 0;
    bool empty = false;
    boost::container::small_vector<Dimension, 4> dimensions; // innermost first
};

std::unexpected<Error> box_error(Errc code, const Shape& stored, const Shape& offsets,
                                 const Shape& sizes, std::string_view rule) {
    return fail(code, "place box",
                fmt::format("box {} of a stored tensor of shape {}: {}",
                            in_words(ChunkStorageMetadata{offsets, sizes}), in_words(stored),
                            rule));
}

std::optional<std::uint64_t> checked_times(std::uint64_t a, std::uint64_t b) {
    std::uint64_t product = 0;
    if (__builtin_mul_overflow(a, b, &product) || product > max_extent)
        return std::nullopt;
    return product;
}

// Strides of the stored tensor and of memory, checked. `memory_strides` empty = contiguous.
Result<void> measure(Geometry& box, Dtype dtype, const Shape& stored, const Shape& offsets,
                     const Shape& sizes, const Strides& memory_strides) {
    const auto wrong = [&](Errc code, std::string_view rule) {
        return box_error(code, stored, offsets, sizes, rule);
    };
    const std::size_t rank = stored.size();
    if (offsets.size() != rank || sizes.size() != rank ||
        (!memory_strides.empty() && memory_strides.size() != rank))
        return wrong(Errc::plan_shape_mismatch, "ranks differ");

    if (bits(dtype) % 8 != 0)
        box.unit_bits = 1;
    box.element_units = bits(dtype) / box.unit_bits;
    for (std::size_t d = 0; d < rank; ++d) {
        if (sizes[d] > stored[d] || offsets[d] > stored[d] - sizes[d])
            return wrong(Errc::plan_out_of_bounds, "lies outside");
        box.empty |= sizes[d] == 0;
    }

    std::uint64_t stride = box.element_units; // in the file
    std::uint64_t dense = box.element_units;  // of the box, contiguous in memory
    std::uint64_t reach = 0;                  // of the box in memory, to either side
    for (std::size_t d = rank; d-- > 0;) {
        std::int64_t memory_stride = static_cast<std::int64_t>(dense);
        if (!memory_strides.empty()) {
            const std::int64_t unit = static_cast<std::int64_t>(box.element_units);
            if (__builtin_mul_overflow(memory_strides[d], unit, &memory_stride))
                return wrong(Errc::plan_overflow, "memory stride overflows");
            if (box.unit_bits == 1 && sizes[d] > 1 && !box.empty &&
                memory_stride != static_cast<std::int64_t>(dense))
                return wrong(Errc::plan_partial_byte,
                             "elements smaller than a byte must be contiguous in memory");
        }
        if (sizes[d] > 1 && !box.empty) {
            const std::uint64_t step = memory_stride < 0
                                           ? -static_cast<std::uint64_t>(memory_stride)
                                           : static_cast<std::uint64_t>(memory_stride);
            const auto far = checked_times(step, sizes[d] - 1);
            if (!far || *far > max_extent - reach)
                return wrong(Errc::plan_overflow, "extent in memory overflows");
            reach += *far;
            box.dimensions.push_back({sizes[d], stride, memory_stride});
        }
        // A product that overflows is an error even where another dimension is 0.
        const auto next = checked_times(stride, std::max<std::uint64_t>(stored[d], 1));
        if (!next)
            return wrong(Errc::plan_overflow, "stored tensor passes 2^63 bytes");
        box.begin += offsets[d] * stride;
        stride = *next;
        dense *= std::max<std::uint64_t>(sizes[d], 1); // sizes[d] <= stored[d]: no overflow
    }
    if (box.unit_bits == 1 && !box.empty && stride % 8 != 0)
        return wrong(Errc::plan_partial_byte, "stored tensor is not whole bytes");
    return {};
}

// Bytes of a box that is all of its tensor; nothing for others, and where measure() has more to say.
std::optional<std::uint64_t> whole_bytes(Dtype dtype, const Shape& stored, const Shape& offsets,
                                         const Shape& sizes) {
    const std::size_t rank = stored.size();
    if (bits(dtype) % 8 != 0 || offsets.size() != rank || sizes.size() != rank)
        return std::nullopt;
    std::uint64_t bytes = bits(dtype) / 8;
    for (std::size_t d = 0; d < rank; ++d)
        if (offsets[d] != 0 || sizes[d] != stored[d] || sizes[d] == 0 ||
            __builtin_mul_overflow(bytes, sizes[d], &bytes) || bytes > max_extent)
            return std::nullopt;
    return bytes;
}

// Joins dimensions (innermost first) into one run and as few loops as there can be, outermost
// first, all in units. `Memory` says whether the strides in memory must fit too.
template <bool memory>
std::uint64_t collapse(const Geometry& box, Loops& loops) {
    std::uint64_t run = box.element_units;
    const auto fits = [](std::int64_t stride, std::uint64_t bytes) {
        return !memory || stride == static_cast<std::int64_t>(bytes);
    };
    for (const Dimension& dimension : box.dimensions) {
        if (loops.empty()) {
            if (dimension.file_stride == run && fits(dimension.memory_stride, run)) {
                run *= dimension.count;
                continue;
            }
        } else {
            Loop& inner = loops.back();
            std::int64_t wide = 0;
            const bool overflows = __builtin_mul_overflow(inner.count, inner.memory_stride, &wide);
            if (dimension.file_stride == inner.count * inner.file_stride &&
                (!memory || (!overflows && dimension.memory_stride == wide))) {
                inner.count *= dimension.count;
                continue;
            }
        }
        loops.push_back(
            {dimension.count, dimension.file_stride, memory ? dimension.memory_stride : 0});
    }
    std::reverse(loops.begin(), loops.end());
    return run;
}

// Units to bytes; false where a run would not begin and end on whole bytes.
bool to_bytes(const Geometry& box, std::uint64_t& run, Loops& loops) {
    if (box.unit_bits == 8)
        return true;
    if (box.begin % 8 != 0 || run % 8 != 0)
        return false;
    run /= 8;
    for (Loop& loop : loops) {
        if (loop.file_stride % 8 != 0)
            return false;
        loop.file_stride /= 8;
        loop.memory_stride /= 8; // a multiple of the run, hence whole
    }
    return true;
}

std::uint64_t span_of(const Loops& loops, std::uint64_t run) {
    for (const Loop& loop : loops)
        run += (loop.count - 1) * loop.file_stride;
    return run;
}

} // namespace

Result<FileBox> FileBox::make(Dtype dtype, const Shape& stored, const Shape& offsets,
                              const Shape& sizes) {
    if (const auto bytes = whole_bytes(dtype, stored, offsets, sizes)) { // as most of a million are
        FileBox box;
        box.run_bytes_ = box.span_bytes_ = box.bytes_ = *bytes;
        return box;
    }
    Geometry geometry;
    if (auto measured = measure(geometry, dtype, stored, offsets, sizes, {}); !measured)
        return std::unexpected(std::move(measured.error()));
    FileBox box;
    if (geometry.empty)
        return box;
    box.run_bytes_ = collapse<false>(geometry, box.loops_);
    if (!to_bytes(geometry, box.run_bytes_, box.loops_))
        return box_error(Errc::plan_partial_byte, stored, offsets, sizes,
                         "runs do not begin and end on whole bytes");
    box.begin_ = geometry.unit_bits == 8 ? geometry.begin : geometry.begin / 8;
    box.span_bytes_ = span_of(box.loops_, box.run_bytes_);
    box.bytes_ = box.run_bytes_;
    for (const Loop& loop : box.loops_)
        box.bytes_ *= loop.count;
    return box;
}

std::uint64_t FileBox::bytes_before(std::uint64_t offset) const {
    if (offset <= begin_)
        return 0;
    std::uint64_t rest = offset - begin_, before = 0, body = bytes_;
    for (const Loop& loop : loops_) {
        const std::uint64_t index = std::min(rest / loop.file_stride, loop.count - 1);
        body /= loop.count;
        before += index * body;
        rest -= index * loop.file_stride;
    }
    return before + std::min(rest, run_bytes_);
}

std::uint64_t FileBox::longest_gap() const {
    std::uint64_t longest = 0, body = run_bytes_;
    for (std::size_t k = loops_.size(); k-- > 0;) {
        longest = std::max(longest, loops_[k].file_stride - body);
        body += (loops_[k].count - 1) * loops_[k].file_stride;
    }
    return longest;
}

bool BoxCopy::memory_dense() const {
    std::uint64_t body = run_bytes_;
    for (std::size_t k = loops_.size(); k-- > 0; body *= loops_[k].count)
        if (loops_[k].memory_stride != static_cast<std::int64_t>(body))
            return false;
    return true;
}

Result<BoxCopy> BoxCopy::make(Dtype dtype, const Shape& stored, const Shape& offsets,
                              const Shape& sizes, const Strides& memory_strides) {
    auto box = FileBox::make(dtype, stored, offsets, sizes);
    if (!box)
        return std::unexpected(std::move(box.error()));
    BoxCopy copy;
    copy.file_box_ = std::move(*box);
    if (memory_strides.empty() && copy.file_box_.contiguous()) {
        copy.run_bytes_ = copy.file_box_.run_bytes();
        return copy; // the common case: one run
    }
    Geometry geometry;
    if (auto measured = measure(geometry, dtype, stored, offsets, sizes, memory_strides); !measured)
        return std::unexpected(std::move(measured.error()));
    if (geometry.empty)
        return copy;
    copy.run_bytes_ = collapse<true>(geometry, copy.loops_);
    // Where the file's runs are whole bytes, the joint runs are: sub-byte memory is contiguous.
    const bool whole = to_bytes(geometry, copy.run_bytes_, copy.loops_);
    SAFERING_ASSERT(whole);
    return copy;
}

} // namespace safering::plan
