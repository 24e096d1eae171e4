#include <safering/error.hpp>

#include <cstdio>
#include <cstdlib>

#include <fmt/format.h>

#include "utf8.hpp"

namespace safering {

namespace {

const char* words(Errc code) {
    switch (code) {
    case Errc::header_truncated: return "file is shorter than the 8 bytes of a header length";
    case Errc::header_empty: return "header length is 0";
    case Errc::header_too_large: return "header is larger than the limit";
    case Errc::header_beyond_file: return "header reaches past the end of the file";
    case Errc::header_not_utf8: return "header is not valid UTF-8";
    case Errc::header_syntax: return "header is not valid JSON";
    case Errc::header_not_object: return "header is not a JSON object";
    case Errc::header_trailing_text: return "text after the end of the header's object";
    case Errc::header_too_deep: return "header is nested too deeply";
    case Errc::header_duplicate_key: return "key stands twice";
    case Errc::header_missing_field: return "field is missing";
    case Errc::header_bad_tensor: return "tensor is not an object";
    case Errc::header_bad_metadata: return "__metadata__ is not a map of strings";
    case Errc::header_unknown_dtype: return "unknown dtype";
    case Errc::header_bad_shape: return "shape is not a list of unsigned 64-bit integers";
    case Errc::header_bad_offsets: return "data_offsets are not two unsigned 64-bit integers";
    case Errc::header_size_overflow: return "size of the tensor overflows";
    case Errc::header_offsets_reversed: return "data_offsets end before they begin";
    case Errc::header_offsets_beyond_file: return "data_offsets reach past the end of the file";
    case Errc::header_size_mismatch: return "data_offsets disagree with dtype and shape";
    case Errc::header_partial_byte: return "tensor is not a whole number of bytes";
    case Errc::header_hole: return "hole between tensors";
    case Errc::header_overlap: return "tensors overlap";
    case Errc::header_missing_data: return "file ends before its tensors do";
    case Errc::header_trailing_data: return "file goes on after its last tensor";
    case Errc::header_too_many_tensors: return "more tensors than the limit";
    case Errc::header_name_too_long: return "tensor name is longer than the limit";
    case Errc::header_rank_too_high: return "tensor has more dimensions than the limit";
    case Errc::plan_hole: return "plan leaves a part of the tensor uncovered";
    case Errc::plan_overlap: return "parts of the plan overlap";
    case Errc::plan_out_of_bounds: return "part lies outside its tensor";
    case Errc::plan_shape_mismatch: return "dtype or shape disagree";
    case Errc::plan_duplicate_item: return "item is planned twice";
    case Errc::plan_unmapped_tensor: return "tensor is not in fqn_to_index_mapping";
    case Errc::plan_partial_byte: return "part of a sub-byte tensor is not whole bytes";
    case Errc::plan_overflow: return "size overflows";
    case Errc::plan_bad_bytes: return "serialised plan is damaged";
    case Errc::plan_bad_name: return "name cannot be stored";
    case Errc::plan_not_prepared: return "step called out of order";
    case Errc::checkpoint_not_found: return "no checkpoint here";
    case Errc::checkpoint_unsafe_name: return "file name is not one plain component";
    case Errc::checkpoint_bad_manifest: return "manifest is damaged";
    case Errc::checkpoint_bad_index: return "index is damaged";
    case Errc::checkpoint_bad_sharding_info: return "DCP_SHARDING_INFO is damaged";
    case Errc::checkpoint_file_missing: return "file of the checkpoint is missing";
    case Errc::checkpoint_file_size: return "file has another size than the checkpoint says";
    case Errc::checkpoint_not_a_file: return "not a regular file";
    case Errc::checkpoint_conflict: return "files of the checkpoint disagree";
    case Errc::checkpoint_tensor_missing: return "tensor is not in the checkpoint";
    case Errc::checkpoint_incomplete: return "stored parts do not cover the tensor";
    case Errc::checkpoint_digest_mismatch: return "bytes were changed since they were saved";
    case Errc::checkpoint_results_mismatch: return "write results do not match the plan";
    case Errc::checkpoint_foreign_attempt: return "belongs to another save attempt";
    case Errc::checkpoint_not_visible: return "the coordinator's directory is not visible here";
    case Errc::checkpoint_over_budget: return "needs more memory than allowed";
    case Errc::io_no_progress: return "transfer makes no progress";
    case Errc::io_unexpected_end: return "file ended early";
    case Errc::io_backend_unavailable: return "I/O backend is not available";
    case Errc::io_forked: return "reactor was made in another process";
    case Errc::io_stopped: return "reactor is stopping";
    case Errc::io_peer_lost: return "another rank of this host ended or gave up";
    case Errc::save_superseded: return "a newer save was asked for before this one began";
    }
    return "unknown safering error";
}

class Category final : public std::error_category {
  public:
    const char* name() const noexcept override { return "safering"; }
    std::string message(int code) const override { return words(static_cast<Errc>(code)); }
};

} // namespace

const std::error_category& safering_category() noexcept {
    static const Category category;
    return category;
}

std::error_code make_error_code(Errc code) noexcept {
    return {static_cast<int>(code), safering_category()};
}

std::string escaped(std::string_view text) {
    // Long enough for any sane tensor name, short enough for one line of a log.
    constexpr std::size_t shown_bytes = 200;
    std::string out;
    std::size_t at = 0;
    while (at < text.size() && at < shown_bytes) {
        const auto byte = static_cast<unsigned char>(text[at]);
        const std::size_t length = utf8_length(text.substr(at));
        if (byte == '\\' || byte == '"')
            out += '\\', out += text[at++];
        else if (byte < 0x20 || byte == 0x7F || length == 0)
            out += fmt::format("\\x{:02x}", byte), ++at;
        else if (length == 2 && byte == 0xC2 && static_cast<unsigned char>(text[at + 1]) < 0xA0)
            out += fmt::format("\\u{:04x}", static_cast<unsigned char>(text[at + 1])), at += 2;
        else
            out.append(text, at, length), at += length;
    }
    if (at < text.size())
        out += fmt::format("... ({} bytes)", text.size());
    return out;
}

std::string Error::message() const {
    std::string out = operation.empty() ? "safering" : operation;
    if (!file.empty())
        out += fmt::format(" {}", escaped(file));
    if (length != 0)
        out += fmt::format(", bytes {}-{}", offset, offset + length);
    if (!tensor.empty())
        out += fmt::format(", tensor \"{}\"", escaped(tensor));
    out += fmt::format(": {}", code.message());
    if (!detail.empty())
        out += fmt::format(": {}", detail);
    return out;
}

std::unexpected<Error> fail(std::error_code code, std::string operation, std::string detail) {
    return std::unexpected(
        Error{.code = code, .operation = std::move(operation), .detail = std::move(detail)});
}

std::unexpected<Error> fail(Errc code, std::string operation, std::string detail) {
    return fail(make_error_code(code), std::move(operation), std::move(detail));
}

Exception::Exception(Error error)
    : std::system_error(error.code, error.message()), error_(std::move(error)) {}
Exception::~Exception() = default;

void detail::assertion_failed(const char* expression, const char* file, int line) {
    std::fprintf(stderr, "%s:%d: safering assertion failed: %s\n", file, line, expression);
    std::abort();
}

} // namespace safering
