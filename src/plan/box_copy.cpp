// The copies behind BoxCopy: which kernel moves which part, and when the digest is taken.
#include "plan/box.hpp"

#include <algorithm>
#include <cstring>
#include <span>

#include "plan/copy_kernels.hpp"

namespace safering::plan {

namespace {

// The digest is taken this often: small enough that the bytes are still in a core's second-level
// cache, large enough that restarting the walk costs nothing (measured; shared/linux-io.md).
constexpr std::uint64_t digest_block_bytes = 128 * 1024;

// Runs of at least this many bytes are hashed where they lie in memory, shorter ones in the image.
constexpr std::uint64_t digest_source_min_bytes = streaming_min_bytes;

// A lone run below it is copied plainly: the walk, and the fence after streaming, would cost more than
// they save where tensors are small and many (measured).
constexpr std::uint64_t small_bytes = 16 * 1024;

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
    const std::uint64_t begin = file_box_.hull().begin;
    if (loops_.empty() && part.size() < small_bytes) {
        const std::byte* from = memory + (part.begin - begin);
        if (digest != nullptr)
            digest->update(from, part.size());
        std::memcpy(image + (part.begin - window.begin), from, part.size());
        return;
    }
    const ToImage way{memory, image, window.begin};
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

std::uint64_t BoxCopy::gather_digested(const std::byte* memory, std::byte* image, ByteRange window,
                                       Digest& scratch) const {
    const ByteRange part = window.clip(file_box_.hull());
    if (loops_.empty() && !part.empty() && part.size() < small_bytes) {
        const std::byte* from = memory + (part.begin - file_box_.hull().begin);
        const std::uint64_t digest = digest_of({from, static_cast<std::size_t>(part.size())});
        std::memcpy(image + (part.begin - window.begin), from, part.size());
        return digest;
    }
    scratch.reset();
    gather(memory, image, window, &scratch);
    return scratch.value();
}

void BoxCopy::scatter(const std::byte* image, std::byte* memory, ByteRange window) const {
    const ByteRange part = window.clip(file_box_.hull());
    if (part.empty())
        return;
    if (loops_.empty() && part.size() < small_bytes) {
        std::memcpy(memory + (part.begin - file_box_.hull().begin),
                    image + (part.begin - window.begin), part.size());
        return;
    }
    move(ToMemory{memory, image, window.begin}, part);
    if (run_bytes_ >= streaming_min_bytes)
        streaming_fence();
}

} // namespace safering::plan
