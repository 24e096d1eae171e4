// compare_checkpoints: names, dtypes and shapes from the headers; values by the digests of both manifests where
// these were cut alike, else by bytes, window by window.
#include <safering/checkpoint.hpp>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "checkpoint/read_job.hpp"
#include "checkpoint/stored_checkpoint.hpp"
#include "checkpoint/windows.hpp"
#include "io/huge_memory.hpp"

namespace safering {

using namespace checkpoint;

namespace {

// Everything that must be equal for two lists of digests to speak of the same bytes, and the digests.
struct Fingerprint {
    struct Extent {
        std::optional<ChunkStorageMetadata> box;
        std::vector<std::uint64_t> digests;
        friend bool operator==(const Extent&, const Extent&) = default;
    };
    struct Chunk {
        ChunkStorageMetadata box;
        // Where the first cut falls in the stored tensor; 0 where none does.
        std::uint64_t first_cut = 0;
        std::vector<Extent> extents;
        friend bool operator==(const Chunk&, const Chunk&) = default;
    };
    std::uint64_t chunk_bytes = 0;
    std::vector<Chunk> chunks;
    friend bool operator==(const Fingerprint&, const Fingerprint&) = default;
};

std::optional<Fingerprint> fingerprint(const StoredCheckpoint& checkpoint,
                                       const TensorStorageMetadata& tensor) {
    if (!checkpoint.digests)
        return std::nullopt;
    Fingerprint out{.chunk_bytes = checkpoint.chunk_bytes, .chunks = {}};
    for (std::size_t c = 0; c < tensor.chunks.size(); ++c) {
        const StorageInfo& storage = tensor.storage[c];
        const StoredFile& file = checkpoint.files[storage.file];
        if (file.extents.empty() || storage.length == 0)
            return std::nullopt;
        // In offset order; empty tensors may stand where this one begins.
        const auto found =
            std::ranges::partition_point(file.header.tensors, [&](const auto& entry) {
                return entry.data.end + file.header.data_begin <= storage.offset;
            });
        const auto t = static_cast<std::size_t>(found - file.header.tensors.begin());
        const ByteRange range = file.tensor_range(t);
        const std::uint64_t cut = round_up(range.begin + 1, checkpoint.chunk_bytes);
        Fingerprint::Chunk chunk{.box = tensor.chunks[c],
                                 .first_cut = cut < range.end ? cut - range.begin : 0,
                                 .extents = {}};
        for (std::size_t e = file.extents.first(t); e < file.extents.first(t + 1); ++e) {
            const FileExtents::Extent extent = file.extents.at(e);
            chunk.extents.push_back(
                {extent.box == nullptr ? std::nullopt : std::optional(*extent.box),
                 {extent.digests.begin(), extent.digests.end()}});
        }
        out.chunks.push_back(std::move(chunk));
    }
    return out;
}

// One tensor's elements that differ.
struct Count {
    std::uint64_t elements = 0;
    std::uint64_t different = 0;
    Shape first{};
};

void compare_slice(const Slice& slice, const std::byte* a, const std::byte* b, Count& count) {
    // Elements below a byte are counted by bytes, and have no place to tell.
    const std::uint64_t width = std::max(bits(slice.dtype) / 8, 1u);
    count.elements += slice.bytes / width;
    if (std::memcmp(a, b, slice.bytes) == 0)
        return;
    for (std::uint64_t at = 0; at < slice.bytes; at += width) {
        if (std::memcmp(a + at, b + at, width) == 0)
            continue;
        if (count.different++ != 0 || bits(slice.dtype) < 8)
            continue;
        count.first = slice.box.offsets;
        std::uint64_t element = at / width;
        for (std::size_t d = slice.box.sizes.size(); d-- > 0; element /= slice.box.sizes[d])
            count.first[d] += element % slice.box.sizes[d];
    }
}

class Comparison {
  public:
    Comparison(Reactor& reactor, const CompareOptions& options)
        : reactor_(reactor), options_(options) {}

    Result<CompareReport> run(const std::string& first, const std::string& second) {
        for (const auto& [path, into] : {std::pair(&first, &a_), std::pair(&second, &b_)}) {
            auto opened = open_checkpoint(reactor_, *path, false);
            if (!opened)
                return std::unexpected(std::move(opened.error()));
            *into = std::move(*opened);
        }
        for (const auto& [fqn, tensor] : a_.metadata.tensors)
            compare_tensor(fqn, tensor);
        for (const auto& [fqn, tensor] : b_.metadata.tensors)
            if (!a_.metadata.tensors.contains(fqn))
                add(TensorDifference::Kind::only_in_second, fqn, {});
        if (auto compared = compare_values(); !compared)
            return std::unexpected(std::move(compared.error()));
        std::ranges::stable_sort(report_.differences, {}, &TensorDifference::fqn);
        return std::move(report_);
    }

  private:
    void add(TensorDifference::Kind kind, std::string_view fqn, std::string detail) {
        report_.differences.push_back({kind, std::string(fqn), std::move(detail)});
    }

    void compare_tensor(std::string_view fqn, const TensorStorageMetadata& tensor) {
        const auto found = b_.metadata.tensors.find(fqn);
        if (found == b_.metadata.tensors.end())
            return add(TensorDifference::Kind::only_in_first, fqn, {});
        const TensorStorageMetadata& other = found->second;
        if (tensor.size != other.size)
            return add(TensorDifference::Kind::shape, fqn,
                       fmt::format("[{}] and [{}]", fmt::join(tensor.size, ", "),
                                   fmt::join(other.size, ", ")));
        if (tensor.dtype != other.dtype)
            return add(TensorDifference::Kind::dtype, fqn,
                       fmt::format("{} and {}", name(tensor.dtype), name(other.dtype)));
        ++report_.tensors;
        if (!options_.values)
            return;
        if (!options_.read_all) {
            const auto mine = fingerprint(a_, tensor);
            if (mine && mine == fingerprint(b_, other)) {
                for (const StorageInfo& storage : tensor.storage)
                    report_.digest_bytes += storage.length;
                return;
            }
        }
        to_read_.tensors.emplace_hint(to_read_.tensors.end(), fqn, tensor);
    }

    Result<void> compare_values() {
        if (to_read_.tensors.empty())
            return {};
        auto windows =
            make_windows(to_read_, {}, std::max<std::uint64_t>(options_.memory_bytes / 2, 4096));
        if (!windows)
            return std::unexpected(std::move(windows.error()));
        std::uint64_t total = 0;
        std::uint64_t largest = 0;
        for (const Window& window : *windows)
            total += window.bytes, largest = std::max(largest, window.bytes);
        // Tensors without elements need no memory, and no memory cannot be had.
        for (auto& half : memory_) {
            auto allocated = io::allocate_huge(std::max<std::uint64_t>(largest, 1));
            if (!allocated)
                return std::unexpected(std::move(allocated.error()));
            half = std::move(*allocated);
        }
        std::map<std::string, Count> counts;
        std::uint64_t done = 0;
        for (const Window& window : *windows) {
            if (auto compared = compare_window(window, counts); !compared)
                return compared;
            done += window.bytes;
            if (options_.progress)
                options_.progress(done, total);
        }
        for (const auto& [fqn, count] : counts)
            if (count.different != 0) {
                const bool whole = bits(to_read_.tensors.at(fqn).dtype) >= 8;
                add(TensorDifference::Kind::values, fqn,
                    fmt::format("{} of {} {}{}", count.different, count.elements,
                                whole ? "elements, first at " : "bytes",
                                whole ? fmt::format("[{}]", fmt::join(count.first, ", ")) : ""));
            }
        return {};
    }

    Result<void> compare_window(const Window& window, std::map<std::string, Count>& counts) {
        for (const auto& [checkpoint, memory] :
             {std::pair(&a_, &memory_[0]), std::pair(&b_, &memory_[1])})
            if (auto read = read_window(window, *checkpoint, memory->get()); !read)
                return read;
        std::uint64_t at = 0;
        for (const Slice& slice : window.slices) {
            compare_slice(slice, memory_[0].get() + at, memory_[1].get() + at, counts[slice.fqn]);
            at += round_up(slice.bytes, tensor_alignment);
        }
        return {};
    }

    Result<void> read_window(const Window& window, const StoredCheckpoint& checkpoint,
                             std::byte* memory) {
        std::vector<LocalDestination> destinations;
        for (const Slice& slice : window.slices) {
            const MutableTensorView view{.data = memory,
                                         .dtype = slice.dtype,
                                         .shape = slice.box.sizes,
                                         .strides = {},
                                         .owner = {}};
            destinations.push_back({slice.fqn, view, slice.size, slice.box.offsets});
            memory += round_up(slice.bytes, tensor_alignment);
        }
        DefaultLoadPlanner planner(std::move(destinations));
        auto plan = planner.create_local_plan(checkpoint.metadata);
        if (!plan)
            return std::unexpected(std::move(plan.error()));
        auto job = ReadJob::make(reactor_, checkpoint, *plan, planner, {});
        if (!job)
            return std::unexpected(std::move(job.error()));
        auto read = (*job)->run();
        if (!read)
            return std::unexpected(std::move(read.error()));
        report_.read_bytes += read->tensor_bytes;
        return {};
    }

    Reactor& reactor_;
    const CompareOptions& options_;
    StoredCheckpoint a_;
    StoredCheckpoint b_;
    Metadata to_read_;
    std::array<std::shared_ptr<std::byte>, 2> memory_;
    CompareReport report_;
};

} // namespace

Result<CompareReport> compare_checkpoints(const std::string& first, const std::string& second,
                                          Reactor& reactor, const CompareOptions& options) {
    return Comparison(reactor, options).run(first, second);
}

} // namespace safering
