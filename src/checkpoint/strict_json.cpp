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

// From the leaves up.
void clear_members(json& value) {
    if (!value.is_structured())
        return;
    for (json& member : value)
        clear_members(member);
    if (auto* elements = value.get_ptr<json::array_t*>())
        elements->clear();
    else
        value.get_ptr<json::object_t*>()->clear();
}

// Builds the value itself: the library's own callbacks cannot stop its parser, which would go on through a gigabyte of
// brackets, and take time that grows with the square of an object's members.
class StrictDom final : public nlohmann::json_sax<json> {
  public:
    StrictDom(unsigned max_depth, std::uint64_t max_values)
        : max_depth_(max_depth), values_left_(max_values) {}
    ~StrictDom() override { clear_members(root_); }

    const std::string& fault() const { return fault_; }
    json&& value() { return std::move(root_); }

    bool null() override { return add(nullptr); }
    bool boolean(bool value) override { return add(value); }
    bool number_integer(number_integer_t value) override { return add(value); }
    bool number_unsigned(number_unsigned_t value) override { return add(value); }
    bool number_float(number_float_t value, const string_t&) override { return add(value); }
    bool string(string_t& value) override { return add(std::move(value)); }
    bool binary(binary_t&) override { return stop("binary"); }
    bool start_object(std::size_t) override {
        keys_.open();
        return begin(json::object());
    }
    bool key(string_t& key) override {
        keys_.add(key);
        key_ = std::move(key);
        return true;
    }
    bool end_object() override {
        open_.pop_back();
        const auto twice = keys_.close();
        return !twice || stop(fmt::format("key \"{}\" stands twice", escaped(*twice)));
    }
    bool start_array(std::size_t) override { return begin(json::array()); }
    bool end_array() override {
        open_.pop_back();
        return true;
    }
    bool parse_error(std::size_t, const std::string&,
                     const nlohmann::detail::exception& error) override {
        return stop(escaped(error.what())); // with the position, and text of the file
    }

  private:
    bool stop(std::string fault) {
        fault_ = std::move(fault);
        return false;
    }
    template <typename T>
    json* put(T&& value) {
        if (open_.empty())
            return &(root_ = std::forward<T>(value));
        json& parent = *open_.back();
        if (auto* elements = parent.get_ptr<json::array_t*>())
            return &elements->emplace_back(std::forward<T>(value));
        // Of a key that stands twice the last counts until the object's end says so.
        auto& members = *parent.get_ptr<json::object_t*>();
        return &(members[std::move(key_)] = std::forward<T>(value));
    }
    template <typename T>
    bool add(T&& value) {
        if (!count())
            return false;
        put(std::forward<T>(value));
        return true;
    }
    bool count() { return values_left_-- != 0 || stop("it holds more than belongs there"); }
    bool begin(json value) {
        if (open_.size() >= max_depth_)
            return stop(fmt::format("nested deeper than {}", max_depth_));
        if (!count())
            return false;
        open_.push_back(put(std::move(value)));
        return true;
    }

    unsigned max_depth_;
    std::uint64_t values_left_;
    json root_;
    std::vector<json*> open_;
    std::string key_;
    safetensors::KeyScopes keys_;
    std::string fault_;
};

} // namespace

JsonTree::~JsonTree() {
    clear_members(*this);
}

Result<JsonTree> parse_strict_json(std::string_view text, unsigned max_depth, Errc code,
                                   const std::string& operation, const std::string& file,
                                   std::uint64_t max_values) {
    StrictDom dom(max_depth, max_values);
    if (!json::sax_parse(text.begin(), text.end(), &dom))
        return std::unexpected(
            Error{.code = code, .operation = operation, .file = file, .detail = dom.fault()});
    return JsonTree(dom.value());
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
