// What ranks of an AsyncSaver tell each other, as bytes: what they have, or the Error that they have instead.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <safering/plan.hpp>
#include <safering/storage_writer.hpp>

namespace safering::checkpoint {

using Bytes = std::vector<std::byte>;

/// Empty where there is no memory for it, which says so.
Bytes pack(const Result<Bytes>& value);
/// The value or the Error that was packed, plan_bad_bytes, or not_enough_memory: here, or where it was packed.
Result<Bytes> unpack(std::span<const std::byte> message);

/// A message with a number behind it; empty where there is no memory for it, or was none for the message.
Bytes with_number(Bytes message, std::uint64_t number);
/// Another one in its place, which needs no memory.
void set_number(Bytes& message, std::uint64_t number);
/// Takes it off; nothing where there is none.
std::optional<std::uint64_t> take_number(Bytes& message);

/// What all ranks learn of a save that ended well: not the notes, nor what is about one process.
Bytes to_bytes(const SaveReport& report);
Result<SaveReport> save_report_from_bytes(std::span<const std::byte> bytes);

} // namespace safering::checkpoint
