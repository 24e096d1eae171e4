// What ranks of an AsyncSaver tell each other, as bytes: what they have, or the Error that they have instead.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include <safering/plan.hpp>
#include <safering/storage_writer.hpp>

namespace safering::checkpoint {

using Bytes = std::vector<std::byte>;

Bytes pack(const Result<Bytes>& value);
/// The value or the Error that was packed, or plan_bad_bytes.
Result<Bytes> unpack(std::span<const std::byte> message);

/// A rank's part of a new save.
struct BeginSave {
    /// Of the save that this one takes the place of; 0: of none.
    std::uint64_t superseded = 0;
    SavePlan plan{};
};
Bytes to_bytes(const BeginSave& begin);
Result<BeginSave> begin_save_from_bytes(std::span<const std::byte> bytes);

/// What all ranks learn of a save that ended well: not the notes, nor what is about one process.
Bytes to_bytes(const SaveReport& report);
Result<SaveReport> save_report_from_bytes(std::span<const std::byte> bytes);

} // namespace safering::checkpoint
