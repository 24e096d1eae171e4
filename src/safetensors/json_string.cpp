#include "safetensors/json_string.hpp"

namespace safering::safetensors {

void append_json_string(std::string& out, std::string_view text) {
    constexpr std::string_view hex = "0123456789abcdef";
    out += '"';
    std::size_t copied = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const auto byte = static_cast<unsigned char>(text[i]);
        if (byte >= 0x20 && byte != '"' && byte != '\\')
            continue;
        out.append(text, copied, i - copied);
        copied = i + 1;
        out += '\\';
        if (byte >= 0x20) {
            out += text[i];
        } else {
            out += "u00";
            out += hex[byte >> 4];
            out += hex[byte & 15];
        }
    }
    out.append(text, copied);
    out += '"';
}

} // namespace safering::safetensors
