#include "checkpoint/strict_json.hpp"

#include <charconv>

#include <fmt/format.h>

#include "plan/box.hpp"
#include "safetensors/json_string.hpp"
#include "safetensors/key_scopes.hpp"

namespace safering::checkpoint {

namespace {

constexpr std::string_view seal_key = ",\"xxh3\":\"";
constexpr std::size_t seal_bytes = seal_key.size() + 16 + 3; // key, hex, `"}\n`

} // namespace

Result<nlohmann::json> parse_strict_json(std::string_view text, unsigned max_depth, Errc code,
                                         const std::string& operation, const std::string& file) {
    using nlohmann::json;
    safetensors::KeyScopes keys;
    std::string fault;
    const auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
        if (!fault.empty())
            return false;
        if (static_cast<unsigned>(depth) > max_depth)
            fault = fmt::format("nested deeper than {}", max_depth);
        else if (event == json::parse_event_t::object_start)
            keys.open();
        else if (event == json::parse_event_t::key)
            keys.add(parsed.get_ref<const std::string&>());
        else if (event == json::parse_event_t::object_end)
            if (const auto twice = keys.close())
                fault = fmt::format("key \"{}\" stands twice", escaped(*twice));
        return fault.empty();
    };
    json value;
    try {
        value = json::parse(text.begin(), text.end(), watch);
    } catch (const json::exception& error) {
        // json::exception's text carries the position; the value is lost either way.
        fault = fault.empty() ? error.what() : fault;
    }
    if (!fault.empty())
        return std::unexpected(
            Error{.code = code, .operation = operation, .file = file, .detail = escaped(fault)});
    return value;
}

std::uint64_t digest_of(std::string_view bytes) {
    return plan::digest_of(std::as_bytes(std::span(bytes)));
}

std::string json_string(std::string_view text) {
    std::string out;
    safetensors::append_json_string(out, text);
    return out;
}

std::string seal_json(std::string body) {
    const std::uint64_t digest = digest_of(body);
    body += fmt::format("{}{:016x}\"}}\n", seal_key, digest);
    return body;
}

bool is_sealed_json(std::string_view text) {
    if (text.size() <= seal_bytes)
        return false;
    const std::string_view body = text.substr(0, text.size() - seal_bytes);
    return text.substr(body.size()) == fmt::format("{}{:016x}\"}}\n", seal_key, digest_of(body));
}

void append_hex(std::string& out, std::span<const std::uint64_t> digests) {
    for (const std::uint64_t digest : digests)
        for (int shift = 60; shift >= 0; shift -= 4)
            out += "0123456789abcdef"[digest >> shift & 15];
}

std::optional<Digests> parse_hex_digests(std::string_view text) {
    if (text.size() % 16 != 0)
        return std::nullopt;
    Digests digests(text.size() / 16);
    for (std::size_t i = 0; i < digests.size(); ++i) {
        const char* first = text.data() + 16 * i;
        const auto [end, error] = std::from_chars(first, first + 16, digests[i], 16);
        if (error != std::errc() || end != first + 16)
            return std::nullopt;
    }
    return digests;
}

} // namespace safering::checkpoint
