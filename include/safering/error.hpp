// What can go wrong, as a value: Error inside the library, Exception at its border.
//
// A mistake of the programmer is an assertion (SAFERING_ASSERT, on in release too); what the world does
// wrong is an Error. Words are made here and nowhere else.
#pragma once

#include <cstdint>
#include <expected>
#include <string>
#include <string_view>
#include <system_error>

#include <safering/export.hpp>

namespace safering {

/// safering's own error codes. System errors keep std::system_category().
enum class Errc {
    // A safetensors header that breaks a rule of the format, one code a rule.
    header_truncated = 1, ///< fewer than the 8 bytes of the length
    header_empty,         ///< a length of 0
    header_too_large,     ///< a length above the cap
    header_beyond_file,   ///< the length reaches past the end of the file
    header_not_utf8,
    header_syntax, ///< not JSON: trailing comma, comment, control character, ...
    header_not_object,
    header_trailing_text,
    header_too_deep,
    header_duplicate_key,
    header_missing_field,
    header_bad_tensor, ///< a tensor that is not an object
    header_bad_metadata,
    header_unknown_dtype,
    header_bad_shape,
    header_bad_offsets,
    header_size_overflow,
    header_offsets_reversed,
    header_offsets_beyond_file,
    header_size_mismatch, ///< offsets that disagree with dtype and shape
    header_partial_byte,  ///< a 4- or 6-bit tensor that is not whole bytes
    header_hole,
    header_overlap,
    header_missing_data,  ///< the file is shorter than its tensors
    header_trailing_data, ///< the file is longer than its tensors
    header_too_many_tensors,
    header_name_too_long,
    header_rank_too_high,

    // A plan that cannot be carried out.
    plan_hole = 100,
    plan_overlap,
    plan_out_of_bounds,
    plan_shape_mismatch, ///< rank, dtype or size disagree between items or with the data
    plan_duplicate_item,
    plan_unmapped_tensor, ///< a tensor that fqn_to_index_mapping lacks
    plan_partial_byte,    ///< a 4- or 6-bit tensor cut inside a byte
    plan_overflow,        ///< sizes beyond 2^63
    plan_bad_bytes,       ///< serialised plan or results that do not parse
    plan_bad_name,        ///< a tensor name that the format cannot hold
    plan_not_prepared,    ///< a step of a save or load called out of order

    // A checkpoint that is not what it should be.
    checkpoint_not_found = 200,
    checkpoint_unsafe_name, ///< a file name in an index or manifest that is not one plain component
    checkpoint_bad_manifest,
    checkpoint_bad_index,
    checkpoint_bad_sharding_info,
    checkpoint_file_missing,
    checkpoint_file_size,
    checkpoint_not_a_file,
    checkpoint_conflict, ///< files of one checkpoint that disagree
    checkpoint_tensor_missing,
    checkpoint_incomplete, ///< chunks that do not cover their tensor
    checkpoint_digest_mismatch,
    checkpoint_results_mismatch, ///< write results that do not cover the plan exactly once
    checkpoint_foreign_attempt,  ///< results or files of another attempt
    checkpoint_not_visible,      ///< this rank does not see the coordinator's directory
    checkpoint_over_budget,

    // The machinery.
    io_no_progress = 300, ///< a transfer that moved nothing, again and again
    io_unexpected_end,    ///< a file that ended before the bytes that were planned
    io_backend_unavailable,
    io_forked,    ///< a reactor used in a child process
    io_stopped,   ///< submitted to a reactor that is being destroyed
    io_peer_lost, ///< another rank of the host ended or gave up in an exchange

    save_superseded = 400, ///< a newer save was asked for before this one began
};

SAFERING_API const std::error_category& safering_category() noexcept;
SAFERING_API std::error_code make_error_code(Errc code) noexcept;

/// One failure: what (code), where (operation, file, tensor, byte range), and what to do (detail).
struct Error {
    std::error_code code;
    /// What was being done, a verb phrase: "write", "parse header".
    std::string operation{};
    std::string file{};
    std::string tensor{};
    /// Byte range in the file; length 0 where no range applies.
    std::uint64_t offset = 0;
    std::uint64_t length = 0;
    /// What was expected and found, and what to do next.
    std::string detail{};

    /// One line for a person: `write model.safetensors, bytes 0-4096: No space left on device (...)`.
    /// Names from files are escaped, so the line holds no control characters.
    SAFERING_API std::string message() const;
};

template <typename T>
using Result = std::expected<T, Error>;

/// Shorthand for returning an Error from a Result function.
SAFERING_API std::unexpected<Error> fail(std::error_code code, std::string operation,
                                         std::string detail = {});
SAFERING_API std::unexpected<Error> fail(Errc code, std::string operation, std::string detail = {});

/// Control characters, quotes and non-UTF-8 bytes of a name from a file, made printable; long names
/// are shortened.
SAFERING_API std::string escaped(std::string_view text);

/// What constructors, std::future::get() and the one-call functions throw.
class SAFERING_API Exception : public std::system_error {
  public:
    explicit Exception(Error error);
    ~Exception() override;
    const Error& error() const noexcept { return error_; }

  private:
    Error error_;
};

/// The value, or throws its Error as an Exception.
template <typename T>
T value_or_throw(Result<T> result) {
    if (!result)
        throw Exception(std::move(result.error()));
    if constexpr (!std::is_void_v<T>)
        return std::move(*result);
}

namespace detail {
[[noreturn]] SAFERING_API void assertion_failed(const char* expression, const char* file, int line);
}

} // namespace safering

template <>
struct std::is_error_code_enum<safering::Errc> : std::true_type {};

/// Guards a promise between parts of the program; on in every build.
#define SAFERING_ASSERT(expression)                                                                \
    ((expression) ? void() : ::safering::detail::assertion_failed(#expression, __FILE__, __LINE__))
