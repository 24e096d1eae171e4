// Endpoints of ranks, "<host>/<name>": text that travels in plans.
#pragma once

#include <string_view>

namespace safering {

/// The part that is the same for all ranks of a host; empty for a text that is no endpoint.
inline std::string_view host_of(std::string_view endpoint) {
    const std::size_t slash = endpoint.find('/');
    return slash == std::string_view::npos ? std::string_view() : endpoint.substr(0, slash);
}

} // namespace safering
