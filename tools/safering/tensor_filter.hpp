// Which tensors of a checkpoint are meant: by name, dtype and size.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include <safering/plan.hpp>

namespace safering::tools {

struct TensorFilter {
    /// Patterns of fnmatch(3), of which one must match the whole name: * and ? match dots and slashes too.
    std::vector<std::string> names{};
    std::vector<Dtype> dtypes{};
    std::uint64_t least_bytes = 0;
    std::uint64_t most_bytes = UINT64_MAX;

    bool matches(const TensorMap::value_type& tensor) const;
    bool excludes_any() const {
        return !names.empty() || !dtypes.empty() || least_bytes != 0 || most_bytes != UINT64_MAX;
    }
};

/// --filter, --dtype, --min-size and --max-size; `filter` must outlive the parsing.
void add_filter_options(CLI::App& command, TensorFilter& filter);

/// The name of a dtype in any case. Throws CLI::ValidationError with the names that there are.
Dtype dtype_argument(const std::string& option, const std::string& text);

} // namespace safering::tools
