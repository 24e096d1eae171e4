#include "checkpoint/convert_files.hpp"

#include <algorithm>

#include <fmt/format.h>

namespace safering::checkpoint {

namespace {

// Bytes that a tensor takes in a header, at most by a little: its name escaped, dtype, shape and offsets.
std::uint64_t header_share(std::string_view fqn, const Shape& size) {
    return 2 * fqn.size() + 96 + 21 * size.size();
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

} // namespace

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

Result<FqnToIndexMapping> choose_files(const Metadata& metadata, const ConvertOptions& options) {
    const int given = (options.files != 0 ? 1 : 0) + (options.max_file_bytes != 0 ? 1 : 0) +
                      (options.fqn_to_index_mapping.empty() ? 0 : 1);
    if (given > 1)
        return fail(Errc::plan_shape_mismatch, "convert",
                    "give one of files, max_file_bytes and fqn_to_index_mapping");
    FqnToIndexMapping mapping = options.fqn_to_index_mapping;
    if (!mapping.empty()) {
        for (const auto& [fqn, tensor] : metadata.tensors)
            if (!mapping.contains(fqn))
                return std::unexpected(
                    Error{.code = Errc::plan_unmapped_tensor,
                          .operation = "convert",
                          .tensor = std::string(fqn),
                          .detail = fmt::format("the checkpoint holds it, expected it among the {} "
                                                "names of the mapping; add it",
                                                mapping.size())});
        return mapping;
    }
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

} // namespace safering::checkpoint
