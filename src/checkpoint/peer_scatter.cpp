#include "checkpoint/peer_scatter.hpp"

#include <algorithm>

#include "io/peer_memory.hpp"

namespace safering::checkpoint {

namespace {

// Runs shorter than this with gaps shorter than that are cheaper taken together, and apart here, than named to
// the kernel one by one.
constexpr std::uint64_t short_run_bytes = 2048, short_gap_bytes = 2048;
constexpr std::uint64_t scratch_bytes = std::uint64_t{256} << 10;

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
        const ByteRange part{at, std::min(window.end, at + scratch_bytes)};
        PeerGather gather(process);
        gather.add(address + (part.begin - window.begin), part.size());
        if (auto read = gather.read(scratch_.data()); !read)
            return read;
        copy.scatter(scratch_.data(), memory, part);
        at = part.end;
    }
    return {};
}

} // namespace safering::checkpoint
