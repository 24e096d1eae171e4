#include "checkpoint/windows.hpp"

#include <algorithm>
#include <map>

#include "plan/box.hpp"
#include "safetensors/header.hpp"

namespace safering::checkpoint {

namespace {

// Halves a box along its outermost dimension that can be halved, until it fits.
void cut(const Slice& slice, std::uint64_t limit_bytes, std::vector<Slice>& out) {
    if (slice.bytes <= limit_bytes) {
        out.push_back(slice);
        return;
    }
    const Shape& sizes = slice.box.sizes;
    const auto widest =
        std::ranges::find_if(sizes, [](std::uint64_t extent) { return extent > 1; });
    if (widest == sizes.end()) {
        out.push_back(slice);
        return;
    }
    const auto d = static_cast<std::size_t>(widest - sizes.begin());
    Slice first = slice;
    first.box.sizes[d] = sizes[d] / 2;
    Slice second = slice;
    second.box.offsets[d] += first.box.sizes[d];
    second.box.sizes[d] -= first.box.sizes[d];
    const auto box_of = [](const Slice& half) {
        return plan::FileBox::make(half.dtype, half.size, half.box.offsets, half.box.sizes);
    };
    const auto first_box = box_of(first);
    const auto second_box = box_of(second);
    if (!first_box || !second_box) { // a sub-byte tensor that cannot be cut on a byte here
        out.push_back(slice);
        return;
    }
    first.bytes = first_box->bytes();
    second.bytes = second_box->bytes();
    cut(first, limit_bytes, out);
    cut(second, limit_bytes, out);
}

} // namespace

Result<std::vector<Window>> make_windows(const Metadata& metadata, const FqnToIndexMapping& mapping,
                                         std::uint64_t limit_bytes) {
    std::map<std::uint32_t, std::vector<safetensors::TensorEntryView>> files;
    for (const auto& [fqn, tensor] : metadata.tensors)
        files[mapping.empty() ? 1 : mapping.find(fqn)->second].push_back(
            {fqn, tensor.dtype, {tensor.size.data(), tensor.size.size()}, {}});
    std::vector<Slice> slices;
    for (auto& [index, entries] : files) {
        if (auto ordered = safetensors::assign_offsets(entries); !ordered)
            return std::unexpected(std::move(ordered.error()));
        for (const safetensors::TensorEntryView& entry : entries) {
            const Shape shape(entry.shape.begin(), entry.shape.end());
            cut({.fqn = std::string(entry.name),
                 .dtype = entry.dtype,
                 .size = shape,
                 .box = {Shape(shape.size(), 0), shape},
                 .bytes = entry.data.size()},
                limit_bytes, slices);
        }
    }
    std::vector<Window> windows(1);
    for (Slice& slice : slices) {
        const std::uint64_t aligned = round_up(slice.bytes, tensor_alignment);
        if (!windows.back().slices.empty() && windows.back().bytes + aligned > limit_bytes)
            windows.emplace_back();
        windows.back().bytes += aligned;
        windows.back().slices.push_back(std::move(slice));
    }
    return windows;
}

} // namespace safering::checkpoint
