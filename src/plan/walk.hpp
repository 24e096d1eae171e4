// Nested loops over a file that start anywhere by division. The walk itself knows neither tensors
// nor memory: a loop is a count and two strides, one in the file and one in memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include <boost/container/small_vector.hpp>

#include <safering/byte_range.hpp>

namespace safering::plan {

/// `count` steps of `file_stride` bytes in the file and `memory_stride` bytes in memory.
struct Loop {
    std::uint64_t count = 0;
    std::uint64_t file_stride = 0;
    std::int64_t memory_stride = 0;
};
using Loops = std::vector<Loop>; // empty, and so without an allocation, for most boxes

/// Which runs of one loop a window touches: [first, last) lie wholly inside; run first - 1 is there
/// in part where `head`, run last where `tail`. A run cut at both ends is a head.
struct Cut {
    std::uint64_t first = 0;
    std::uint64_t last = 0;
    bool head = false;
    bool tail = false;
};

/// The loop's runs of `run` bytes start at `file`; run <= file_stride.
inline Cut cut_loop(const Loop& loop, std::uint64_t run, std::uint64_t file, ByteRange window) {
    const std::uint64_t span = (loop.count - 1) * loop.file_stride + run;
    const std::uint64_t low = window.begin > file ? window.begin - file : 0;
    const std::uint64_t high = window.end > file ? std::min(window.end - file, span) : 0;
    if (low == 0 && high == span)
        return {0, loop.count, false, false};
    if (low >= high)
        return {};
    Cut cut;
    cut.first = low / loop.file_stride;
    const std::uint64_t into = low - cut.first * loop.file_stride;
    if (into > 0) {
        cut.head = into < run;
        ++cut.first;
    }
    cut.last = high >= run ? (high - run) / loop.file_stride + 1 : 0;
    if (cut.last >= cut.first)
        cut.tail = cut.last < loop.count && cut.last * loop.file_stride < high;
    else
        cut.last = cut.first;
    return cut;
}

inline ByteRange run_at(const Loop& loop, std::uint64_t run, std::uint64_t file,
                        std::uint64_t index) {
    const std::uint64_t begin = file + index * loop.file_stride;
    return {begin, begin + run};
}

/// Calls f(file, memory) for the places of the innermost body, in rising file order, from
/// the last one that begins at or before window.begin (or the first) to the last that
/// begins before window.end.
template <typename F>
void walk(std::span<const Loop> loops, std::uint64_t file, ByteRange window, F&& f) {
    std::uint64_t rest = window.begin > file ? window.begin - file : 0;
    std::int64_t memory = 0;
    boost::container::small_vector<std::uint64_t, 8> index(loops.size());
    for (std::size_t k = 0; k < loops.size(); ++k) {
        index[k] = std::min(rest / loops[k].file_stride, loops[k].count - 1);
        rest -= index[k] * loops[k].file_stride;
        file += index[k] * loops[k].file_stride;
        memory += static_cast<std::int64_t>(index[k]) * loops[k].memory_stride;
    }
    while (file < window.end) {
        f(file, memory);
        std::size_t k = loops.size();
        for (;;) {
            if (k == 0)
                return;
            --k;
            const Loop& loop = loops[k];
            if (++index[k] < loop.count) {
                file += loop.file_stride;
                memory += loop.memory_stride;
                break;
            }
            index[k] = 0;
            file -= (loop.count - 1) * loop.file_stride;
            memory -= static_cast<std::int64_t>(loop.count - 1) * loop.memory_stride;
        }
    }
}

} // namespace safering::plan
