#include "safetensors/header.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include <fmt/format.h>

#include "safetensors/header_events.hpp"
#include "safetensors/plain_header.hpp"
#include "safetensors/tensor_table.hpp"
#include "utf8.hpp"

namespace safering::safetensors {

namespace {

static_assert(std::endian::native == std::endian::little,
              "lengths are read and written as they lie");

constexpr std::uint64_t length_bytes = sizeof(std::uint64_t);
constexpr std::string_view byte_order_mark = "\xEF\xBB\xBF";

Error header_error(Errc code, const std::string& file, std::uint64_t offset, std::uint64_t length,
                   std::string detail) {
    return {.code = code,
            .operation = "parse header",
            .file = file,
            .offset = offset,
            .length = length,
            .detail = std::move(detail)};
}

Result<void> check_length(std::uint64_t length, std::uint64_t file_bytes, const std::string& file,
                          const HeaderLimits& limits) {
    const auto reject = [&](Errc code, std::string detail) {
        return std::unexpected(header_error(code, file, 0, length_bytes, std::move(detail)));
    };
    if (length == 0)
        return reject(Errc::header_empty, "expected a length of at least 2, found 0");
    // Keys are found again by 32-bit offsets, whatever limit the caller sets.
    const std::uint64_t most =
        std::min<std::uint64_t>(limits.header_bytes, std::numeric_limits<std::uint32_t>::max());
    if (length > most)
        return reject(Errc::header_too_large,
                      fmt::format("expected at most {} bytes, found a length of {}", most, length));
    if (file_bytes < length_bytes || length > file_bytes - length_bytes)
        return reject(Errc::header_beyond_file,
                      fmt::format("expected a file of at least {} bytes, found {}",
                                  length_bytes + length, file_bytes));
    return {};
}

// What nlohmann's lexer does not refuse or does not name: it skips a byte order mark and takes a
// NUL for the end of the input.
std::optional<Error> check_text(std::string_view json, const std::string& file) {
    if (json.starts_with(byte_order_mark))
        return header_error(Errc::header_syntax, file, length_bytes, byte_order_mark.size(),
                            "expected '{', found a byte order mark");
    if (const std::size_t at = find_invalid_utf8(json); at != std::string_view::npos)
        return header_error(Errc::header_not_utf8, file, length_bytes + at, 1,
                            fmt::format("expected UTF-8, found byte {:#04x} that begins no valid "
                                        "sequence",
                                        static_cast<unsigned char>(json[at])));
    return std::nullopt;
}

} // namespace

Result<std::uint64_t> parse_header_length(std::string_view first_bytes, std::uint64_t file_bytes,
                                          const std::string& file, const HeaderLimits& limits) {
    const std::uint64_t found = std::min<std::uint64_t>(first_bytes.size(), file_bytes);
    if (found < length_bytes)
        return std::unexpected(header_error(Errc::header_truncated, file, 0, 0,
                                            fmt::format("expected 8 bytes, found {}", found)));
    std::uint64_t length = 0;
    std::memcpy(&length, first_bytes.data(), length_bytes);
    if (Result<void> fits = check_length(length, file_bytes, file, limits); !fits)
        return std::unexpected(std::move(fits.error()));
    return length;
}

Result<Header> parse_header(std::string_view json, std::uint64_t file_bytes,
                            const std::string& file, const HeaderLimits& limits) {
    if (Result<void> fits = check_length(json.size(), file_bytes, file, limits); !fits)
        return std::unexpected(std::move(fits.error()));
    if (std::optional<Error> error = check_text(json, file))
        return std::unexpected(std::move(*error));

    const std::uint64_t data_begin = length_bytes + json.size();
    const auto finish = [&](Header header) -> Result<Header> {
        header.data_begin = data_begin;
        if (Result<void> ordered = order_tensors(header.tensors, file_bytes - data_begin, file);
            !ordered)
            return std::unexpected(std::move(ordered.error()));
        return header;
    };
    if (std::optional<Header> header = parse_plain_header(json, limits))
        return finish(std::move(*header));
    HeaderEvents events(file, limits, file_bytes - data_begin);
    const std::size_t nul = json.find('\0');
    const std::string_view text = json.substr(0, nul);
    nlohmann::json::sax_parse(text.data(), text.data() + text.size(), &events);
    if (std::optional<Error>& error = events.error()) {
        if (error->code == Errc::header_syntax && nul != std::string_view::npos)
            error->detail += fmt::format("; a NUL byte at {} ends the text", length_bytes + nul);
        return std::unexpected(std::move(*error));
    }
    if (nul != std::string_view::npos)
        return std::unexpected(header_error(Errc::header_trailing_text, file, length_bytes + nul, 1,
                                            "expected white space, found a NUL byte"));

    return finish(std::move(events.header()));
}

Result<Header> parse_head(std::string_view head, std::uint64_t file_bytes, const std::string& file,
                          const HeaderLimits& limits) {
    const Result<std::uint64_t> length = parse_header_length(head, file_bytes, file, limits);
    if (!length)
        return std::unexpected(length.error());
    if (head.size() - length_bytes < *length)
        return std::unexpected(header_error(Errc::io_unexpected_end, file, 0,
                                            length_bytes + *length,
                                            fmt::format("expected the first {} bytes, found {}",
                                                        length_bytes + *length, head.size())));
    return parse_header(head.substr(length_bytes, *length), file_bytes, file, limits);
}

} // namespace safering::safetensors
