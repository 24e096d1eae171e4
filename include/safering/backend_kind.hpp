// What carries requests to the kernel.
#pragma once

#include <cstdint>
#include <string_view>

#include <safering/export.hpp>

namespace safering {

enum class BackendKind : std::uint8_t { io_uring, threads, simulated };
SAFERING_API std::string_view name(BackendKind kind);

} // namespace safering
