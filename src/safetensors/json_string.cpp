#include "safetensors/json_string.hpp"

#include "plain_json.hpp"

namespace safering::safetensors {

void append_json_string(std::string& out, std::string_view text) {
    constexpr std::string_view hex = "0123456789abcdef";
    out += '"';
    for (;;) {
        const std::size_t plain = plain_length(text);
        out.append(text, 0, plain);
        if (plain == text.size())
            break;
        const auto byte = static_cast<unsigned char>(text[plain]);
        out += '\\';
        if (byte >= 0x20) {
            out += text[plain];
        } else {
            out += "u00";
            out += hex[byte >> 4];
            out += hex[byte & 15];
        }
        text.remove_prefix(plain + 1);
    }
    out += '"';
}

} // namespace safering::safetensors
