#include "plan/box.hpp"

#include <limits>
#include <optional>

#include <fmt/format.h>

#include "plan/copy_kernels.hpp"
#include "plan/text.hpp"

namespace safering::plan {

namespace {

// The digest is taken this often: small enough that the bytes are still in a core's second-level
// cache, large enough that restarting the walk costs nothing (measured; shared/linux-io.md).
constexpr std::uint64_t digest_block_bytes = 128 * 1024;

// Runs of at least this many bytes are hashed where they lie in memory, shorter ones in the image.
constexpr std::uint64_t digest_source_min_bytes = streaming_min_bytes;

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

// The two directions of a copy. `image` holds the file from `base` on.
struct ToImage {
    const std::byte* memory;
    std::byte* image;
    std::uint64_t base;

    void runs(std::uint64_t file, std::int64_t at, const Loop& loop, std::uint64_t count,
              std::size_t run) const {
        copy_runs({image + (file - base), static_cast<std::int64_t>(loop.file_stride)},
                  {memory + at, loop.memory_stride}, count, run);
    }
    void matrix(std::uint64_t file, std::int64_t at, const Loop& rows, std::uint64_t count,
                const Loop& columns, std::size_t element) const {
        copy_matrix(image + (file - base),
                    {static_cast<std::int64_t>(rows.file_stride),
                     static_cast<std::int64_t>(columns.file_stride)},
                    memory + at, {rows.memory_stride, columns.memory_stride}, count, columns.count,
                    element, TileOrder::along_source);
    }
};

// The same, with the digest of the source taken first, a block at a time: the copy then finds it in
// the caches, and what is streamed leaves nothing of the image there.
struct ToImageWithDigest : ToImage {
    Digest* digest;

    void runs(std::uint64_t file, std::int64_t at, const Loop& loop, std::uint64_t count,
              std::size_t run) const {
        // Runs that follow each other in memory are hashed together.
        const std::uint64_t together =
            loop.memory_stride == static_cast<std::int64_t>(run)
                ? std::clamp<std::uint64_t>(digest_block_bytes / run, 1, count)
                : 1;
        for (std::uint64_t i = 0; i < count; i += together) {
            const std::uint64_t now = std::min(together, count - i);
            const std::uint64_t begin = file + i * loop.file_stride;
            const std::int64_t from = at + static_cast<std::int64_t>(i) * loop.memory_stride;
            if (run > digest_block_bytes) {
                long_run(begin, from, run);
            } else {
                digest->update(memory + from, now * run);
                ToImage::runs(begin, from, loop, now, run);
            }
        }
    }

  private:
    void long_run(std::uint64_t file, std::int64_t at, std::size_t run) const {
        for (std::size_t done = 0; done < run; done += digest_block_bytes) {
            const std::size_t bytes = std::min<std::size_t>(digest_block_bytes, run - done);
            const std::byte* from = memory + at + static_cast<std::int64_t>(done);
            digest->update(from, bytes);
            copy_streaming(image + (file + done - base), from, bytes);
        }
    }
};

struct ToMemory {
    std::byte* memory;
    const std::byte* image;
    std::uint64_t base;

    void runs(std::uint64_t file, std::int64_t at, const Loop& loop, std::uint64_t count,
              std::size_t run) const {
        copy_runs({memory + at, loop.memory_stride},
                  {image + (file - base), static_cast<std::int64_t>(loop.file_stride)}, count, run);
    }
    void matrix(std::uint64_t file, std::int64_t at, const Loop& rows, std::uint64_t count,
                const Loop& columns, std::size_t element) const {
        // Tiles are best read along the side that is dense: rows of memory are columns of the file.
        copy_matrix(memory + at, {columns.memory_stride, rows.memory_stride}, image + (file - base),
                    {static_cast<std::int64_t>(columns.file_stride),
                     static_cast<std::int64_t>(rows.file_stride)},
                    columns.count, count, element, TileOrder::along_target);
    }
};

} // namespace

Result<FileBox> FileBox::make(Dtype dtype, const Shape& stored, const Shape& offsets,
                              const Shape& sizes) {
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

bool BoxCopy::transposed() const {
    if (loops_.size() < 2 || run_bytes_ > 8 || (run_bytes_ & (run_bytes_ - 1)) != 0)
        return false;
    const auto magnitude = [](std::int64_t stride) { return stride < 0 ? -stride : stride; };
    const Loop& rows = loops_[loops_.size() - 2];
    const Loop& columns = loops_.back();
    // Memory runs faster along the file's rows than along its columns.
    return magnitude(rows.memory_stride) < magnitude(columns.memory_stride) &&
           static_cast<std::uint64_t>(magnitude(columns.memory_stride)) > run_bytes_;
}

// The part of one row of runs that lies in the window.
template <typename Way>
void BoxCopy::move_row(const Way& way, std::uint64_t file, std::int64_t memory,
                       ByteRange window) const {
    const Loop row = loops_.empty() ? Loop{1, run_bytes_, 0} : loops_.back();
    const Cut cut = cut_loop(row, run_bytes_, file, window);
    const auto part = [&](std::uint64_t index) {
        const ByteRange run = run_at(row, run_bytes_, file, index);
        const ByteRange inside = run.clip(window);
        const auto at = memory + static_cast<std::int64_t>(index) * row.memory_stride +
                        static_cast<std::int64_t>(inside.begin - run.begin);
        way.runs(inside.begin, at, row, 1, inside.size());
    };
    if (cut.head)
        part(cut.first - 1);
    if (cut.first < cut.last)
        way.runs(file + cut.first * row.file_stride,
                 memory + static_cast<std::int64_t>(cut.first) * row.memory_stride, row,
                 cut.last - cut.first, run_bytes_);
    if (cut.tail)
        part(cut.last);
}

// The part of a plane (the two innermost loops) of a transposed box that lies in the window.
template <typename Way>
void BoxCopy::move_plane(const Way& way, std::uint64_t file, std::int64_t memory,
                         ByteRange window) const {
    const Loop& rows = loops_[loops_.size() - 2];
    const Loop& columns = loops_.back();
    const std::uint64_t row_bytes = (columns.count - 1) * columns.file_stride + run_bytes_;
    const Cut cut = cut_loop(rows, row_bytes, file, window);
    const auto row_at = [&](std::uint64_t index) {
        return memory + static_cast<std::int64_t>(index) * rows.memory_stride;
    };
    if (cut.head)
        move_row(way, file + (cut.first - 1) * rows.file_stride, row_at(cut.first - 1), window);
    if (cut.first < cut.last)
        way.matrix(file + cut.first * rows.file_stride, row_at(cut.first), rows,
                   cut.last - cut.first, columns, run_bytes_);
    if (cut.tail)
        move_row(way, file + cut.last * rows.file_stride, row_at(cut.last), window);
}

template <typename Way>
void BoxCopy::move(Way way, ByteRange window) const {
    const std::span<const Loop> loops(loops_.data(), loops_.size());
    const std::uint64_t begin = file_box_.hull().begin;
    if (transposed()) {
        walk(loops.first(loops.size() - 2), begin, window,
             [&](std::uint64_t file, std::int64_t memory) {
                 move_plane(way, file, memory, window);
             });
    } else {
        walk(loops.first(loops.empty() ? 0 : loops.size() - 1), begin, window,
             [&](std::uint64_t file, std::int64_t memory) { move_row(way, file, memory, window); });
    }
}

// Bytes of the file between two digests. A transposed box is copied in tiles of several of its
// rows, so it gets as many rows as make whole tiles.
std::uint64_t BoxCopy::digest_block() const {
    if (!transposed())
        return digest_block_bytes;
    const std::uint64_t tile = loops_[loops_.size() - 2].file_stride * matrix_tile(run_bytes_);
    return tile * std::max<std::uint64_t>(1, digest_block_bytes / tile);
}

void BoxCopy::gather(const std::byte* memory, std::byte* image, ByteRange window,
                     Digest* digest) const {
    const ByteRange part = window.clip(file_box_.hull());
    if (part.empty())
        return;
    const ToImage way{memory, image, window.begin};
    const std::uint64_t begin = file_box_.hull().begin;
    if (digest == nullptr) {
        move(way, part);
    } else if (run_bytes_ >= digest_source_min_bytes) {
        move(ToImageWithDigest{way, digest}, part);
    } else {
        // Blocks count from the box's first byte, so that they hold whole rows where rows matter.
        const std::uint64_t step = digest_block();
        std::uint64_t at = begin + (part.begin - begin) / step * step;
        for (; at < part.end; at += step) {
            const ByteRange block = part.clip({at, at + step});
            move(way, block);
            digest->update(file_box_, image + (block.begin - window.begin), block);
        }
    }
    if (run_bytes_ >= streaming_min_bytes)
        streaming_fence();
}

void BoxCopy::scatter(const std::byte* image, std::byte* memory, ByteRange window) const {
    const ByteRange part = window.clip(file_box_.hull());
    if (part.empty())
        return;
    move(ToMemory{memory, image, window.begin}, part);
    if (run_bytes_ >= streaming_min_bytes)
        streaming_fence();
}

} // namespace safering::plan
