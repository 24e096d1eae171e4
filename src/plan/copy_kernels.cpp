// See copy_kernels.hpp. The wide variants are compiled by target attributes and picked once, at
// start, by what the processor has; the library itself needs no more than the platform's baseline.
#include "plan/copy_kernels.hpp"

#include <algorithm>
#include <cstring>

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

template <std::size_t size>
void copy_tile(std::byte* to, MatrixSide to_side, const std::byte* from, MatrixSide from_side,
               std::uint64_t rows, std::uint64_t columns) {
    // Through a local tile: source lines are read whole along their fast side and target lines
    // written whole along theirs, whatever sets of the cache the strides of the big matrices fall
    // into.
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

template <std::size_t size>
void copy_tiles(std::byte* to, MatrixSide to_side, const std::byte* from, MatrixSide from_side,
                std::uint64_t rows, std::uint64_t columns) {
    constexpr std::uint64_t side = matrix_tile(size);
    for (std::uint64_t r = 0; r < rows; r += side) {
        for (std::uint64_t c = 0; c < columns; c += side) {
            const auto row = static_cast<std::int64_t>(r), column = static_cast<std::int64_t>(c);
            copy_tile<size>(to + row * to_side.row + column * to_side.column, to_side,
                            from + row * from_side.row + column * from_side.column, from_side,
                            std::min(side, rows - r), std::min(side, columns - c));
        }
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
    case 1:
        return copy_fixed<1>(to, from, count);
    case 2:
        return copy_fixed<2>(to, from, count);
    case 4:
        return copy_fixed<4>(to, from, count);
    case 8:
        return copy_fixed<8>(to, from, count);
    case 16:
        return copy_fixed<16>(to, from, count);
    case 32:
        return copy_fixed<32>(to, from, count);
    default:
        break;
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
                 std::uint64_t rows, std::uint64_t columns, std::size_t element) {
    switch (element) {
    case 1:
        return copy_tiles<1>(to, to_side, from, from_side, rows, columns);
    case 2:
        return copy_tiles<2>(to, to_side, from, from_side, rows, columns);
    case 4:
        return copy_tiles<4>(to, to_side, from, from_side, rows, columns);
    default:
        return copy_tiles<8>(to, to_side, from, from_side, rows, columns);
    }
}

} // namespace safering::plan
