// The inner loops of box copies. They know bytes and strides, nothing of tensors.
#pragma once

#include <cstddef>
#include <cstdint>

namespace safering::plan {

/// Runs of at least this many bytes are worth copy_streaming: below it the fence and the ragged
/// ends cost more than the saved read-for-ownership (measured in bench/plan_bench.cpp).
inline constexpr std::size_t streaming_min_bytes = 1024;

/// memcpy that writes around the caches where the processor can; streaming_fence() must follow
/// before another thread or the kernel is told of the bytes.
void copy_streaming(std::byte* to, const std::byte* from, std::size_t bytes);
void streaming_fence();

/// A side of a strided copy; strides in bytes.
struct ConstStrided {
    const std::byte* data;
    std::int64_t stride;
};
struct Strided {
    std::byte* data;
    std::int64_t stride;
};

/// `count` runs of `run` bytes. Runs of 1, 2, 4, 8, 16 and 32 bytes are typed loads and stores,
/// those of streaming_min_bytes and more are streamed (the fence is the caller's).
void copy_runs(Strided to, ConstStrided from, std::uint64_t count, std::size_t run);

struct MatrixSide {
    std::int64_t row;
    std::int64_t column;
};
/// Which side's lines follow each other from tile to tile: best the side that is not in the caches.
enum class TileOrder { along_source, along_target };

/// A matrix of elements of 1, 2, 4 or 8 bytes whose two sides run through memory in different
/// orders: element (r, c) goes from `from` + r * from_side.row + c * from_side.column to `to` + r *
/// to_side.row + c * to_side.column. In tiles of a cache line by a cache line, so that each line is
/// touched once; quickest where the source is dense along r and the target along c.
void copy_matrix(std::byte* to, MatrixSide to_side, const std::byte* from, MatrixSide from_side,
                 std::uint64_t rows, std::uint64_t columns, std::size_t element, TileOrder order);

/// Rows of a tile of copy_matrix: callers hand over multiples of it where they can.
constexpr std::uint64_t matrix_tile(std::size_t element) {
    return 64 / element;
}

} // namespace safering::plan
