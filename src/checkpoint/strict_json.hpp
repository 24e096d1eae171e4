// JSON from a file that may be damaged or hostile: no duplicate key, bounded nesting, nothing after the end.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include <safering/plan.hpp>

namespace safering::checkpoint {

/// A value whose end needs no memory: the destructor of nlohmann's asks for some where there are members, and so may
/// end the process.
class JsonTree : public nlohmann::json {
  public:
    explicit JsonTree(nlohmann::json&& value) : nlohmann::json(std::move(value)) {}
    // As it is: nlohmann's constructor for other types would take it for one of those, and copy it.
    JsonTree(JsonTree&& other) noexcept : nlohmann::json(static_cast<nlohmann::json&&>(other)) {}
    JsonTree& operator=(JsonTree&&) = delete;
    ~JsonTree();
};

/// Errors: `code`, with what and where in the text. `operation` and `file` go into the error. The value takes up to
/// twenty times the memory of its text: `max_values` are all that may be in it, itself included.
Result<JsonTree> parse_strict_json(std::string_view text, unsigned max_depth, Errc code,
                                   const std::string& operation, const std::string& file,
                                   std::uint64_t max_values = ~std::uint64_t{0});

/// `text` as a JSON string with its quotes. `text` must be UTF-8.
std::string json_string(std::string_view text);

/// JSON that ends in the digest of all bytes before it, so that any changed byte shows. `body` is an object
/// without its closing brace and with at least one member: `{"a":1` becomes `{"a":1,"xxh3":"<16 hex>"}\n`.
std::string seal_json(std::string body);
/// Whether `text` was made by seal_json and is unchanged.
bool is_sealed_json(std::string_view text);

/// XXH3-64.
std::uint64_t digest_of(std::string_view bytes);

/// Appends the digests of an extent, 16 hex digits each.
void append_hex(std::string& out, std::span<const std::uint64_t> digests);
/// Nothing where the text is not that.
std::optional<Digests> parse_hex_digests(std::string_view text);

} // namespace safering::checkpoint
