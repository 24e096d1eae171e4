// A safetensors header: bytes <-> table of tensors. Pure.
//
// Invariant of a Header that parse_header returned: tensors are in offset order, start at 0, leave
// no hole and no overlap, agree with their dtype and shape, and end exactly at data_bytes.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <safering/byte_range.hpp>
#include <safering/tensor.hpp>
#include <safering/tensor_name.hpp>

namespace safering::safetensors {

struct TensorEntry {
    TensorName name;
    Dtype dtype = Dtype::u8;
    Shape shape;
    /// Relative to the data section, as data_offsets are.
    ByteRange data;

    friend bool operator==(const TensorEntry&, const TensorEntry&) = default;
};

/// A tensor to be written, which borrows its name and its shape.
struct TensorEntryView {
    std::string_view name;
    Dtype dtype = Dtype::u8;
    std::span<const std::uint64_t> shape;
    ByteRange data;
};

struct Header {
    std::vector<TensorEntry> tensors;
    /// __metadata__, in file order (written sorted by the caller if order matters).
    std::vector<std::pair<std::string, std::string>> metadata;
    /// 8 + header length: where the data section starts in the file.
    std::uint64_t data_begin = 0;

    friend bool operator==(const Header&, const Header&) = default;
};

/// Bounds for untrusted input.
struct HeaderLimits {
    std::uint64_t header_bytes = 100'000'000;
    std::uint64_t tensors = 1'000'000;
    std::uint64_t name_bytes = 4096;
    std::uint64_t rank = 64;
    /// Entries of __metadata__; more are header_bad_metadata.
    std::uint64_t metadata_entries = 1'000'000;
    /// Nested arrays and objects, the top level being 1.
    std::uint64_t depth = 4;
};

/// Checks the first 8 bytes of a file of `file_bytes` bytes and gives the header's length N.
/// `file` is for messages only, here and below.
Result<std::uint64_t> parse_header_length(std::string_view first_bytes, std::uint64_t file_bytes,
                                          const std::string& file, const HeaderLimits& limits = {});

/// `json` is exactly the N bytes after the length. SAX, one pass, memory in
/// proportion to the table.
///
/// Where several rules are broken, the error is the first of: the length; a byte order mark; the
/// encoding; what breaks first in the order of the text (a key that stands twice in the table, in
/// __metadata__ or in an unknown field breaks where its object ends, a tensor's missing field and
/// then its size where the tensor ends, and there size_overflow, partial_byte, reversed,
/// beyond_file, size_mismatch in this order); the first tensor in offset order that does not begin
/// where its predecessor ends (beyond_file before hole); the end of the data. A file that was only
/// cut short is header_missing_data, and offsets that no data could make good are
/// header_offsets_beyond_file.
Result<Header> parse_header(std::string_view json, std::uint64_t file_bytes,
                            const std::string& file, const HeaderLimits& limits = {});

/// Both of the above on the head of a file (at least 8 + N bytes of it, or io_unexpected_end).
Result<Header> parse_head(std::string_view head, std::uint64_t file_bytes, const std::string& file,
                          const HeaderLimits& limits = {});

/// Sorts into the order that serves direct I/O, mmap and GPU loads, and assigns `data`:
/// tensors whose size is a multiple of 4096 first, the rest by falling element size, names
/// break ties. `origin`, where given, gets the former index of each tensor. Errors:
/// header_size_overflow, header_partial_byte, header_duplicate_key.
Result<void> assign_offsets(std::vector<TensorEntryView>& tensors,
                            std::vector<std::uint32_t>* origin = nullptr);

/// The bytes from the start of the file to its data section: length, JSON, and spaces up to a
/// multiple of `alignment` (a power of two, >= 8). Entries must be as assign_offsets leaves them
/// (offsets are asserted). Errors: a name that is not UTF-8 or is "__metadata__" (plan_bad_name),
/// header_too_large; and what the default HeaderLimits would refuse to read back:
/// header_name_too_long, header_rank_too_high, header_too_many_tensors, and for the metadata
/// header_not_utf8, header_duplicate_key, header_bad_metadata.
Result<std::string> write_header(const std::vector<TensorEntryView>& tensors,
                                 const std::vector<std::pair<std::string, std::string>>& metadata,
                                 std::uint64_t alignment = 4096);

} // namespace safering::safetensors
