// A cell of a checkpoint's files: bytes [cell, cell + 1) * chunk_bytes.
#pragma once

#include <compare>
#include <cstdint>

namespace safering::checkpoint {

struct CellName {
    /// Index into Metadata::files.
    std::uint32_t file = 0;
    std::uint64_t cell = 0;

    friend auto operator<=>(const CellName&, const CellName&) = default;
};

} // namespace safering::checkpoint
