#include "tensor_filter.hpp"

#include <algorithm>
#include <cctype>

#include <fmt/format.h>
#include <fnmatch.h>

#include "command.hpp"
#include "tensor_tree.hpp"

namespace safering::tools {

bool TensorFilter::matches(const TensorMap::value_type& tensor) const {
    const auto& [fqn, stored] = tensor;
    const auto match = [&](const std::string& pattern) {
        return fnmatch(pattern.c_str(), fqn.c_str(), 0) == 0;
    };
    if (!names.empty() && std::ranges::none_of(names, match))
        return false;
    if (!dtypes.empty() && std::ranges::find(dtypes, stored.dtype) == dtypes.end())
        return false;
    const std::uint64_t bytes = stored_bytes(stored);
    return bytes >= least_bytes && bytes <= most_bytes;
}

Dtype dtype_argument(const std::string& option, const std::string& text) {
    std::string upper = text;
    std::ranges::transform(upper, upper.begin(), [](unsigned char c) { return std::toupper(c); });
    if (const auto dtype = parse_dtype(upper))
        return *dtype;
    std::string known;
    for (std::size_t i = 0; i < dtype_count; ++i)
        known += fmt::format("{}{}", i == 0 ? "" : ", ", name(static_cast<Dtype>(i)));
    throw CLI::ValidationError(option, fmt::format("\"{}\" is none of {}", escaped(text), known));
}

void add_filter_options(CLI::App& command, TensorFilter& filter) {
    command
        .add_option("--filter", filter.names,
                    "Only tensors whose whole name matches one of these globs: '*.norm.*'")
        ->type_name("GLOB")
        ->allow_extra_args(false);
    command
        .add_option(
            "--dtype",
            [&filter](const CLI::results_t& values) {
                for (const std::string& value : values)
                    filter.dtypes.push_back(dtype_argument("--dtype", value));
                return true;
            },
            "Only tensors of one of these dtypes: BF16,F32")
        ->type_name("DTYPE")
        ->expected(1, CLI::detail::expected_max_vector_size)
        ->allow_extra_args(false)
        ->delimiter(',');
    add_bytes_option(command, "--min-size", filter.least_bytes,
                     "Only tensors of at least so many bytes: 1MiB");
    add_bytes_option(command, "--max-size", filter.most_bytes,
                     "Only tensors of at most so many bytes");
}

} // namespace safering::tools
