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

using nlohmann::json;

// The rules that nlohmann's parser does not have. Not as its callback: with one, the parser looks at every member
// that an object has so far whenever another ends, which for an object of 100,000 takes minutes.
class Rules final : public nlohmann::json_sax<json> {
  public:
    explicit Rules(unsigned max_depth) : max_depth_(max_depth) {}
    const std::string& fault() const { return fault_; }

    bool null() override { return true; }
    bool boolean(bool) override { return true; }
    bool number_integer(json::number_integer_t) override { return true; }
    bool number_unsigned(json::number_unsigned_t) override { return true; }
    bool number_float(json::number_float_t, const std::string&) override { return true; }
    bool string(std::string&) override { return true; }
    bool binary(json::binary_t&) override { return true; }
    bool key(std::string& name) override {
        keys_.add(name);
        return true;
    }
    bool start_object(std::size_t) override {
        keys_.open();
        return enter();
    }
    bool end_object() override {
        --depth_;
        if (const auto twice = keys_.close())
            fault_ = fmt::format("key \"{}\" stands twice", escaped(*twice));
        return fault_.empty();
    }
    bool start_array(std::size_t) override { return enter(); }
    bool end_array() override {
        --depth_;
        return true;
    }
    bool parse_error(std::size_t, const std::string&, const json::exception& error) override {
        fault_ = error.what(); // with the position
        return false;
    }

  private:
    bool enter() {
        if (++depth_ > max_depth_)
            fault_ = fmt::format("nested deeper than {}", max_depth_);
        return fault_.empty();
    }

    unsigned max_depth_;
    unsigned depth_ = 0;
    safetensors::KeyScopes keys_;
    std::string fault_;
};

} // namespace

Result<nlohmann::json> parse_strict_json(std::string_view text, unsigned max_depth, Errc code,
                                         const std::string& operation, const std::string& file) {
    Rules rules(max_depth);
    if (!json::sax_parse(text.begin(), text.end(), &rules))
        return std::unexpected(Error{
            .code = code, .operation = operation, .file = file, .detail = escaped(rules.fault())});
    return json::parse(text.begin(), text.end());
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
