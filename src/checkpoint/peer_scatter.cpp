#include "checkpoint/peer_scatter.hpp"

#include <algorithm>

#include "io/peer_memory.hpp"

namespace safering::checkpoint {

namespace {

// Runs shorter than this with gaps shorter than that are cheaper taken together, and apart here, than named to
// the kernel one by one.
constexpr std::uint64_t short_run_bytes = 2048, short_gap_bytes = 2048;
constexpr std::uint64_t scratch_bytes = std::uint64_t{256} << 10;

// From the first to the last byte that the box has in `part`.
ByteRange held_in(const plan::FileBox& box, ByteRange part) {
    ByteRange held{part.end, part.begin};
    box.for_each_run(part,
                     [&](ByteRange run) { held = {std::min(held.begin, run.begin), run.end}; });
    return held.begin < held.end ? held : ByteRange{};
}

} // namespace

Result<void> PeerScatter::scatter(const plan::BoxCopy& copy, int process, std::uint64_t address,
                                  std::byte* memory, ByteRange window) {
    const plan::FileBox& box = copy.file_box();
    const bool is_short = box.run_bytes() < short_run_bytes && box.longest_gap() < short_gap_bytes;
    if (copy.memory_dense() && (box.contiguous() || !is_short)) {
        PeerGather gather(process);
        box.for_each_run(window, [&](ByteRange run) {
            gather.add(address + (run.begin - window.begin), run.size());
        });
        return gather.read(memory + box.bytes_before(window.begin));
    }
    scratch_.resize(scratch_bytes);
    for (std::uint64_t at = window.begin; at < window.end;) {
        const ByteRange whole{at, std::min(window.end, at + scratch_bytes)};
        at = whole.end;
        // Of a long gap the image may have nothing, and end before it.
        const ByteRange part = is_short ? whole : held_in(box, whole);
        if (part.empty())
            continue;
        PeerGather gather(process);
        gather.add(address + (part.begin - window.begin), part.size());
        if (auto read = gather.read(scratch_.data()); !read)
            return read;
        copy.scatter(scratch_.data(), memory, part);
    }
    return {};
}

} // namespace safering::checkpoint
