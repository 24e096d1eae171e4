#include "checkpoint/rank_messages.hpp"

#include <cstring>
#include <string_view>

#include "out_of_memory.hpp"
#include "plan/byte_codec.hpp"

namespace safering::checkpoint {

namespace {

using plan::ByteKind;
using plan::ByteReader;
using plan::ByteWriter;

// How a code's category is told; other categories do not come up.
enum Category : std::uint8_t { own, system, generic };

std::string_view characters_of(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
std::span<const std::byte> bytes_of(std::string_view text) {
    return std::as_bytes(std::span(text));
}

void write(ByteWriter& out, const Error& error) {
    const std::error_category& category = error.code.category();
    out.byte(category == safering_category()       ? own
             : category == std::generic_category() ? generic
                                                   : system);
    out.number(static_cast<std::uint64_t>(error.code.value()));
    for (const std::string* text : {&error.operation, &error.file, &error.tensor, &error.detail})
        out.text(*text);
    out.number(error.offset);
    out.number(error.length);
}

Error read_error(ByteReader& in) {
    const std::uint8_t category = in.byte();
    const int code = static_cast<int>(in.number32());
    Error error{.code = {code, category == own       ? safering_category()
                               : category == generic ? std::generic_category()
                                                     : std::system_category()}};
    for (std::string* text : {&error.operation, &error.file, &error.tensor, &error.detail})
        *text = in.text();
    error.offset = in.number();
    error.length = in.number();
    return error;
}

} // namespace

Bytes pack(const Result<Bytes>& value) {
    Bytes message;
    (void)had_memory([&] {
        ByteWriter out(ByteKind::rank_message);
        out.byte(value.has_value());
        if (value)
            out.text(characters_of(*value));
        else
            write(out, value.error());
        message = std::move(out).finish();
    });
    return message;
}

Result<Bytes> unpack(std::span<const std::byte> message) {
    if (message.empty())
        return std::unexpected(out_of_memory());
    return or_out_of_memory([&]() -> Result<Bytes> {
        ByteReader in(message, ByteKind::rank_message);
        Result<Bytes> value;
        if (in.byte() != 0) {
            const std::string text = in.text();
            value->assign(bytes_of(text).begin(), bytes_of(text).end());
        } else {
            value = std::unexpected(read_error(in));
        }
        if (auto whole = in.finish(); !whole)
            return std::unexpected(std::move(whole.error()));
        return value;
    });
}

Bytes with_number(Bytes message, std::uint64_t number) {
    if (message.empty() || !had_memory([&] { message.resize(message.size() + sizeof number); }))
        return {};
    set_number(message, number);
    return message;
}

void set_number(Bytes& message, std::uint64_t number) {
    std::memcpy(message.data() + message.size() - sizeof number, &number, sizeof number);
}

std::optional<std::uint64_t> take_number(Bytes& message) {
    std::uint64_t number = 0;
    if (message.size() < sizeof number)
        return std::nullopt;
    std::memcpy(&number, message.data() + message.size() - sizeof number, sizeof number);
    message.resize(message.size() - sizeof number);
    return number;
}

Bytes to_bytes(const SaveReport& report) {
    ByteWriter out(ByteKind::rank_message);
    out.text(report.path);
    out.text(report.attempt);
    out.number(report.files);
    out.number(report.tensor_bytes);
    out.byte(report.replaced);
    out.number(report.process_memory_bytes);
    out.number(report.shared_memory_bytes);
    return std::move(out).finish();
}

Result<SaveReport> save_report_from_bytes(std::span<const std::byte> bytes) {
    ByteReader in(bytes, ByteKind::rank_message);
    SaveReport report;
    report.path = in.text();
    report.attempt = in.text();
    report.files = in.number();
    report.tensor_bytes = in.number();
    report.replaced = in.byte() != 0;
    report.process_memory_bytes = in.number();
    report.shared_memory_bytes = in.number();
    if (auto whole = in.finish(); !whole)
        return std::unexpected(std::move(whole.error()));
    return report;
}

} // namespace safering::checkpoint
