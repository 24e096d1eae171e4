#include "checkpoint/index.hpp"

#include <fmt/format.h>

#include "checkpoint/attempt.hpp"
#include "checkpoint/strict_json.hpp"
#include "large_memory.hpp"
#include "plain_json.hpp"
#include "safetensors/json_string.hpp"
#include "utf8.hpp"

namespace safering::checkpoint {

namespace {

// The quick way: an index in the form that most programs give it, names rising. Nothing for any other, or where
// a rule is broken; the long way tells.
std::optional<WeightMap> read_plain(std::string_view text) {
    PlainJson json(text);
    std::uint64_t total_size = 0;
    WeightMap weight_map;
    const auto entry = [&] {
        std::string_view fqn, file;
        if (!json.string(fqn) || !json.take(':') || !json.string(file) || !is_safe_file_name(file))
            return false;
        if (!weight_map.empty() && fqn <= weight_map.rbegin()->first)
            return false;
        weight_map.emplace_hint(weight_map.end(), fqn, file);
        return true;
    };
    if (!json.take('{') || !json.string("metadata", ':') || !json.take('{') ||
        !json.string("total_size", ':') || !json.number(total_size) || !json.take('}') ||
        !json.take(',') || !json.string("weight_map", ':') || !json.each('{', '}', entry) ||
        !json.take('}') || !json.at_end())
        return std::nullopt;
    return weight_map;
}

} // namespace

std::string index_text(std::uint64_t total_size,
                       const std::function<void(const AddWeight&)>& entries) {
    std::string out = fmt::format(
        "{{\n  \"metadata\": {{\n    \"total_size\": {}\n  }},\n  \"weight_map\": {{", total_size);
    std::size_t more = 16; // the end; escapes are rare, and only cost a second reservation
    entries([&](std::string_view fqn, std::string_view file) {
        more += fqn.size() + file.size() + std::string_view(",\n    \"\": \"\"").size();
    });
    reserve_large(out, out.size() + more);
    bool first = true;
    entries([&](std::string_view fqn, std::string_view file) {
        out += first ? "\n    " : ",\n    ";
        safetensors::append_json_string(out, fqn);
        out += ": ";
        safetensors::append_json_string(out, file);
        first = false;
    });
    out += first ? "}\n}\n" : "\n  }\n}\n";
    return out;
}

std::string index_text(const WeightMap& weight_map, std::uint64_t total_size) {
    return index_text(total_size, [&](const AddWeight& add) {
        for (const auto& [fqn, file] : weight_map)
            add(fqn, file);
    });
}

Result<WeightMap> parse_index(std::string_view text, const std::string& file) {
    const auto bad = [&](Errc code, std::string_view fqn, std::string detail) {
        return std::unexpected(Error{.code = code,
                                     .operation = "read index",
                                     .file = file,
                                     .tensor = std::string(fqn),
                                     .detail = std::move(detail)});
    };
    if (find_invalid_utf8(text) == std::string_view::npos)
        if (auto weight_map = read_plain(text))
            return std::move(*weight_map);
    auto root = parse_strict_json(text, 64, Errc::checkpoint_bad_index, "read index", file);
    if (!root)
        return std::unexpected(std::move(root.error()));
    if (!root->is_object() || !root->contains("weight_map") || !(*root)["weight_map"].is_object())
        return bad(Errc::checkpoint_bad_index, {},
                   "expected an object with an object \"weight_map\"");
    WeightMap weight_map;
    for (const auto& [fqn, value] : (*root)["weight_map"].items()) {
        if (!value.is_string())
            return bad(Errc::checkpoint_bad_index, fqn, "its file name is not a string");
        const auto& name = value.get_ref<const std::string&>();
        if (!is_safe_file_name(name))
            return bad(Errc::checkpoint_unsafe_name, fqn,
                       fmt::format("\"{}\" must be one path component ending in .safetensors",
                                   escaped(name)));
        weight_map.emplace_hint(weight_map.end(), fqn,
                                name); // nlohmann's order is that of the names
    }
    return weight_map;
}

} // namespace safering::checkpoint
