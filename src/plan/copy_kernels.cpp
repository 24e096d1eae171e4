// See copy_kernels.hpp. The wide variants are compiled by target attributes and picked once, at
// start, by what the processor has; the library itself needs no more than the platform's baseline.
#include "plan/copy_kernels.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <tuple>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace safering::plan {

namespace {

#if defined(__x86_64__)

// Each copies whole cache lines to a cache-line-aligned place.
using StreamLines = void (*)(std::byte* to, const std::byte* from, std::size_t bytes);

// Ahead of the loads, because the hardware prefetcher stops at each page's end.
constexpr std::size_t prefetch_bytes = 1024;

void stream_sse2(std::byte* to, const std::byte* from, std::size_t bytes) {
    for (std::size_t at = 0; at < bytes; at += 64) {
        const auto* source = reinterpret_cast<const __m128i*>(from + at);
        auto* target = reinterpret_cast<__m128i*>(to + at);
        _mm_prefetch(reinterpret_cast<const char*>(from + at + prefetch_bytes), _MM_HINT_T0);
        const __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1);
        const __m128i c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
        _mm_stream_si128(target, a);
        _mm_stream_si128(target + 1, b);
        _mm_stream_si128(target + 2, c);
        _mm_stream_si128(target + 3, d);
    }
}

__attribute__((target("avx2"))) void stream_avx2(std::byte* to, const std::byte* from,
                                                 std::size_t bytes) {
    for (std::size_t at = 0; at < bytes; at += 64) {
        const auto* source = reinterpret_cast<const __m256i*>(from + at);
        auto* target = reinterpret_cast<__m256i*>(to + at);
        _mm_prefetch(reinterpret_cast<const char*>(from + at + prefetch_bytes), _MM_HINT_T0);
        const __m256i a = _mm256_loadu_si256(source), b = _mm256_loadu_si256(source + 1);
        _mm256_stream_si256(target, a);
        _mm256_stream_si256(target + 1, b);
    }
    _mm256_zeroupper();
}

__attribute__((target("avx512f"))) void stream_avx512(std::byte* to, const std::byte* from,
                                                      std::size_t bytes) {
    for (std::size_t at = 0; at < bytes; at += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(from + at + prefetch_bytes), _MM_HINT_T0);
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to + at), _mm512_loadu_si512(from + at));
    }
    _mm256_zeroupper();
}

StreamLines pick_stream() {
    if (__builtin_cpu_supports("avx512f"))
        return stream_avx512;
    if (__builtin_cpu_supports("avx2"))
        return stream_avx2;
    return stream_sse2;
}

#endif

template <std::size_t size>
void copy_fixed(Strided to, ConstStrided from, std::uint64_t count) {
    // A constant-size memcpy is one load and one store, and allows any alignment.
    if (to.stride == static_cast<std::int64_t>(size)) {
        for (std::uint64_t i = 0; i < count; ++i, from.data += from.stride)
            std::memcpy(to.data + i * size, from.data, size);
    } else if (from.stride == static_cast<std::int64_t>(size)) {
        for (std::uint64_t i = 0; i < count; ++i, to.data += to.stride)
            std::memcpy(to.data, from.data + i * size, size);
    } else {
        for (std::uint64_t i = 0; i < count; ++i, to.data += to.stride, from.data += from.stride)
            std::memcpy(to.data, from.data, size);
    }
}

// Through local tiles: lines of the source are read whole along their dense side, and lines
// of the target written whole along theirs, whatever sets of the cache the strides of the
// big matrices fall into.
template <std::size_t size>
void copy_tile(std::byte* to, MatrixSide to_side, const std::byte* from, MatrixSide from_side,
               std::uint64_t rows, std::uint64_t columns) {
    constexpr std::size_t side = matrix_tile(size);
    alignas(64) std::byte tile[side * side * size];
    for (std::uint64_t c = 0; c < columns; ++c) {
        const std::byte* source = from + static_cast<std::int64_t>(c) * from_side.column;
        for (std::uint64_t r = 0; r < rows; ++r)
            std::memcpy(tile + (r * side + c) * size,
                        source + static_cast<std::int64_t>(r) * from_side.row, size);
    }
    for (std::uint64_t r = 0; r < rows; ++r)
        copy_fixed<size>({to + static_cast<std::int64_t>(r) * to_side.row, to_side.column},
                         {tile + r * side * size, static_cast<std::int64_t>(size)}, columns);
}

// A vector of 16 bytes of elements, and the transposition of as many vectors as one has elements:
// to interleave the first half of the vectors with the second, log2(n) times over, is to transpose.
template <std::size_t size>
struct Vectors {
    static constexpr std::size_t n = 16 / size;
    using Element =
        std::tuple_element_t<std::countr_zero(size),
                             std::tuple<std::uint8_t, std::uint16_t, std::uint32_t, std::uint64_t>>;
    typedef Element Vector __attribute__((vector_size(16)));

    template <std::size_t... i>
    static void interleave(const Vector& a, const Vector& b, Vector& low, Vector& high,
                           std::index_sequence<i...>) {
        low = __builtin_shufflevector(a, b, (i / 2 + i % 2 * n)...);
        high = __builtin_shufflevector(a, b, (n / 2 + i / 2 + i % 2 * n)...);
    }
    static void transpose(Vector (&rows)[n]) {
        Vector next[n];
        for (std::size_t stage = 1; stage < n; stage *= 2) {
            for (std::size_t i = 0; i < n / 2; ++i)
                interleave(rows[i], rows[i + n / 2], next[2 * i], next[2 * i + 1],
                           std::make_index_sequence<n>());
            std::memcpy(rows, next, sizeof(next));
        }
    }
};

// A whole tile whose source is dense along its columns and whose target is along its rows.
template <std::size_t size>
void copy_dense_tile(std::byte* to, std::int64_t to_row, const std::byte* from,
                     std::int64_t from_column) {
    constexpr std::size_t side = matrix_tile(size), n = Vectors<size>::n;
    alignas(64) std::byte source[side * 64];
    for (std::size_t c = 0; c < side; ++c)
        std::memcpy(source + c * 64, from + static_cast<std::int64_t>(c) * from_column, 64);
    for (std::size_t r = 0; r < side; r += n)
        for (std::size_t c = 0; c < side; c += n) {
            typename Vectors<size>::Vector rows[n];
            for (std::size_t i = 0; i < n; ++i)
                std::memcpy(&rows[i], source + (c + i) * 64 + r * size, 16);
            Vectors<size>::transpose(rows);
            for (std::size_t i = 0; i < n; ++i)
                std::memcpy(to + static_cast<std::int64_t>(r + i) * to_row + c * size, &rows[i],
                            16);
        }
}

template <std::size_t size>
void copy_tiles(std::byte* to, MatrixSide to_side, const std::byte* from, MatrixSide from_side,
                std::uint64_t rows, std::uint64_t columns, TileOrder order) {
    constexpr std::uint64_t side = matrix_tile(size);
    constexpr auto dense = static_cast<std::int64_t>(size);
    const bool is_dense = from_side.row == dense && to_side.column == dense;
    const auto tile = [&](std::uint64_t r, std::uint64_t c) {
        const auto row = static_cast<std::int64_t>(r), column = static_cast<std::int64_t>(c);
        std::byte* target = to + row * to_side.row + column * to_side.column;
        const std::byte* source = from + row * from_side.row + column * from_side.column;
        if (is_dense && rows - r >= side && columns - c >= side)
            copy_dense_tile<size>(target, to_side.row, source, from_side.column);
        else
            copy_tile<size>(target, to_side, source, from_side, std::min(side, rows - r),
                            std::min(side, columns - c));
    };
    if (order == TileOrder::along_source) {
        for (std::uint64_t c = 0; c < columns; c += side)
            for (std::uint64_t r = 0; r < rows; r += side)
                tile(r, c);
    } else {
        for (std::uint64_t r = 0; r < rows; r += side)
            for (std::uint64_t c = 0; c < columns; c += side)
                tile(r, c);
    }
}

} // namespace

void copy_streaming(std::byte* to, const std::byte* from, std::size_t bytes) {
#if defined(__x86_64__)
    static const StreamLines stream_lines = pick_stream();
    const std::size_t head =
        std::min<std::size_t>(bytes, -reinterpret_cast<std::uintptr_t>(to) & 63);
    std::memcpy(to, from, head);
    const std::size_t body = (bytes - head) & ~std::size_t{63};
    stream_lines(to + head, from + head, body);
    std::memcpy(to + head + body, from + head + body, bytes - head - body);
#else
    std::memcpy(to, from, bytes);
#endif
}

void streaming_fence() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

void copy_runs(Strided to, ConstStrided from, std::uint64_t count, std::size_t run) {
    switch (run) {
    case 1: return copy_fixed<1>(to, from, count);
    case 2: return copy_fixed<2>(to, from, count);
    case 4: return copy_fixed<4>(to, from, count);
    case 8: return copy_fixed<8>(to, from, count);
    case 16: return copy_fixed<16>(to, from, count);
    case 32: return copy_fixed<32>(to, from, count);
    default: break;
    }
    const bool streaming = run >= streaming_min_bytes;
    for (std::uint64_t i = 0; i < count; ++i, to.data += to.stride, from.data += from.stride) {
        if (streaming)
            copy_streaming(to.data, from.data, run);
        else
            std::memcpy(to.data, from.data, run);
    }
}

void copy_matrix(std::byte* to, MatrixSide to_side, const std::byte* from, MatrixSide from_side,
                 std::uint64_t rows, std::uint64_t columns, std::size_t element, TileOrder order) {
    switch (element) {
    case 1: return copy_tiles<1>(to, to_side, from, from_side, rows, columns, order);
    case 2: return copy_tiles<2>(to, to_side, from, from_side, rows, columns, order);
    case 4: return copy_tiles<4>(to, to_side, from, from_side, rows, columns, order);
    default: return copy_tiles<8>(to, to_side, from, from_side, rows, columns, order);
    }
}

} // namespace safering::plan
