// Rewrites a checkpoint into final files with bounded memory: the tensors are cut into windows, and each
// window is a rank of an ordinary save. While one window is written, the next is read.
#include <safering/checkpoint.hpp>

#include <algorithm>
#include <array>

#include <fmt/format.h>

#include "checkpoint/attempt.hpp"
#include "io/huge_memory.hpp"
#include "plan/box.hpp"
#include "safetensors/header.hpp"

namespace safering {

using namespace checkpoint;

namespace {

constexpr std::uint64_t tensor_alignment = 64;

// A box of a tensor that fits a window.
struct Slice {
    std::string fqn;
    Dtype dtype = Dtype::u8;
    Shape size;
    ChunkStorageMetadata box;
    std::uint64_t bytes = 0;
};

struct Window {
    std::vector<Slice> slices;
    std::uint64_t bytes = 0;
};

// Bytes that a tensor takes in a header, at most by a little: its name escaped, dtype, shape and offsets.
std::uint64_t header_share(const std::string& fqn, const Shape& size) {
    return 2 * fqn.size() + 96 + 21 * size.size();
}

// Cuts a list of sizes into `files` contiguous parts of about equal bytes, none of them empty while there
// are tensors enough: the 1-based part of each.
std::vector<std::uint32_t> equal_parts(const std::vector<std::uint64_t>& sizes,
                                       std::uint32_t files) {
    std::uint64_t rest = 0; // bytes of this part and all later ones
    for (const std::uint64_t size : sizes)
        rest += size;
    std::vector<std::uint32_t> parts;
    std::uint32_t part = 1;
    std::uint64_t in_part = 0;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
        const std::uint64_t files_left = files - part + 1;
        const bool started = !parts.empty() && parts.back() == part;
        const bool full = in_part + sizes[i] / 2 >= rest / files_left;
        const bool each_needs_its_own = sizes.size() - i < files_left;
        if (started && part < files && (full || each_needs_its_own)) {
            rest -= in_part;
            in_part = 0;
            ++part;
        }
        in_part += sizes[i];
        parts.push_back(part);
    }
    return parts;
}

// As many contiguous parts as it takes to keep each below the limit, a larger tensor alone.
std::vector<std::uint32_t> limited_parts(const std::vector<std::uint64_t>& sizes,
                                         std::uint64_t limit_bytes) {
    std::vector<std::uint32_t> parts;
    std::uint32_t part = 1;
    std::uint64_t in_part = 0;
    for (const std::uint64_t size : sizes) {
        if (in_part != 0 && in_part + size > limit_bytes)
            ++part, in_part = 0;
        in_part += size;
        parts.push_back(part);
    }
    return parts;
}

// Runs of tensors in name order, so that layers stay together.
Result<FqnToIndexMapping> choose_files(const Metadata& metadata, const ConvertOptions& options) {
    if (options.files != 0 && options.max_file_bytes != 0)
        return fail(Errc::plan_shape_mismatch, "convert", "give files or max_file_bytes, not both");
    FqnToIndexMapping mapping;
    if (options.files == 0 && options.max_file_bytes == 0)
        return mapping;
    std::vector<std::uint64_t> sizes;
    for (const auto& [fqn, tensor] : metadata.tensors) {
        auto bytes = byte_size(tensor.dtype, tensor.size);
        if (!bytes)
            return std::unexpected(std::move(bytes.error()));
        sizes.push_back(*bytes + header_share(fqn, tensor.size));
    }
    constexpr std::uint64_t padding = 4096; // of the header
    const auto parts = options.files != 0
                           ? equal_parts(sizes, options.files)
                           : limited_parts(sizes, options.max_file_bytes -
                                                      std::min(options.max_file_bytes, padding));
    auto part = parts.begin();
    for (const auto& [fqn, tensor] : metadata.tensors)
        mapping.emplace(fqn, *part++);
    return mapping;
}

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

// Slices in the order of the output files, gathered into windows of at most `limit_bytes`.
Result<std::vector<Window>> make_windows(const Metadata& metadata, const FqnToIndexMapping& mapping,
                                         std::uint64_t limit_bytes) {
    std::map<std::uint32_t, std::vector<safetensors::TensorEntryView>> files;
    for (const auto& [fqn, tensor] : metadata.tensors)
        files[mapping.empty() ? 1 : mapping.at(fqn)].push_back(
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

// Both planners of one window over the same memory.
std::pair<std::vector<LocalTensor>, std::vector<LocalDestination>>
place_window(const Window& window, const std::shared_ptr<std::byte>& memory) {
    std::pair<std::vector<LocalTensor>, std::vector<LocalDestination>> out;
    std::uint64_t at = 0;
    for (const Slice& slice : window.slices) {
        std::byte* data = memory.get() + at;
        at += round_up(slice.bytes, tensor_alignment);
        const MutableTensorView view{.data = data,
                                     .dtype = slice.dtype,
                                     .shape = slice.box.sizes,
                                     .strides = {},
                                     .owner = memory};
        const TensorView source{view.data, view.dtype, view.shape, view.strides, view.owner};
        out.first.push_back({slice.fqn, source, slice.size, slice.box.offsets});
        out.second.push_back({slice.fqn, view, slice.size, slice.box.offsets});
    }
    return out;
}

// __metadata__ that all files agree on, without what describes the shards.
std::vector<std::pair<std::string, std::string>>
common_metadata(const HuggingFaceStorageReader& reader) {
    std::map<std::string, std::optional<std::string>> values;
    for (const auto& [file, entries] : reader.file_metadata())
        for (const auto& [key, value] : entries) {
            const auto [found, inserted] = values.try_emplace(key, value);
            if (!inserted && found->second != value)
                found->second.reset();
        }
    std::vector<std::pair<std::string, std::string>> out;
    for (const auto& [key, value] : values)
        if (value && !key.starts_with("DCP_"))
            out.emplace_back(key, *value);
    return out;
}

std::vector<SavePlan> plan_windows(const std::vector<Window>& windows) {
    std::vector<SavePlan> plans;
    for (const Window& window : windows) {
        SavePlan plan{.rank = static_cast<std::uint32_t>(plans.size()), .items = {}, .storage = {}};
        for (const Slice& slice : window.slices)
            plan.items.push_back({.fqn = slice.fqn,
                                  .type = slice.box.sizes == slice.size ? WriteItemType::tensor
                                                                        : WriteItemType::shard,
                                  .dtype = slice.dtype,
                                  .chunk = slice.box,
                                  .size = slice.size});
        plans.push_back(std::move(plan));
    }
    return plans;
}

} // namespace

Result<SaveReport> convert_checkpoint(const std::string& source, const std::string& destination,
                                      Reactor& reactor, const ConvertOptions& options) {
    const TargetPath from = make_target_path(source);
    const TargetPath to = make_target_path(destination);
    if (from.path == to.path || from.parent == to.path)
        return fail(
            Errc::checkpoint_conflict, "convert",
            "the destination is the source, or the directory that it stands in, where the commit "
            "would replace it; choose another destination");
    // Borrowed: the caller's reactor outlives both.
    const std::shared_ptr<Reactor> shared(std::shared_ptr<void>(), &reactor);
    HuggingFaceStorageReader reader(source, {.verification = Verification::all}, shared);
    auto metadata = reader.read_metadata();
    if (!metadata)
        return std::unexpected(std::move(metadata.error()));
    auto mapping = choose_files(*metadata, options);
    if (!mapping)
        return std::unexpected(std::move(mapping.error()));
    auto windows =
        make_windows(*metadata, *mapping, std::max<std::uint64_t>(options.memory_bytes / 2, 4096));
    if (!windows)
        return std::unexpected(std::move(windows.error()));
    HuggingFaceStorageWriter writer(
        destination, {.fqn_to_index_mapping = *mapping, .metadata = common_metadata(reader)},
        shared);
    auto plans = writer.prepare_global_plan(plan_windows(*windows));
    if (!plans)
        return std::unexpected(std::move(plans.error()));

    std::uint64_t largest = 0;
    std::uint64_t total = 0;
    for (const Window& window : *windows) {
        largest = std::max(largest, window.bytes);
        total += window.bytes;
    }
    std::array<std::shared_ptr<std::byte>, 2> memory;
    for (auto& half : memory) {
        auto allocated = io::allocate_huge(largest);
        if (!allocated)
            return std::unexpected(std::move(allocated.error()));
        half = std::move(*allocated);
    }
    std::vector<WriteResults> results;
    std::future<WriteResults> writing;
    const auto collect = [&]() -> Result<void> {
        if (!writing.valid())
            return {};
        try {
            results.push_back(writing.get());
        } catch (const Exception& exception) {
            return std::unexpected(exception.error());
        }
        return {};
    };
    std::uint64_t done = 0;
    for (std::size_t w = 0; w < windows->size(); ++w) {
        auto [sources, destinations] = place_window((*windows)[w], memory[w % 2]);
        DefaultLoadPlanner load_planner(std::move(destinations));
        auto load_plan = load_planner.create_local_plan(*metadata);
        if (!load_plan)
            return std::unexpected(std::move(load_plan.error()));
        auto read = reader.read_data(*load_plan, load_planner);
        // The window before the last read this memory; it must be out before the next is read into it.
        auto collected = collect();
        if (!read)
            return std::unexpected(std::move(read.error()));
        if (!collected)
            return std::unexpected(std::move(collected.error()));
        DefaultSavePlanner save_planner(std::move(sources));
        writing = writer.write_data((*plans)[w], save_planner);
        done += (*windows)[w].bytes;
        if (options.progress)
            options.progress(done, total);
    }
    if (auto collected = collect(); !collected)
        return std::unexpected(std::move(collected.error()));
    return writer.finish(*metadata, std::move(results));
}

} // namespace safering
