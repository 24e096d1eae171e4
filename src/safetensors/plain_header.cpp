#include "safetensors/plain_header.hpp"

#include <algorithm>

#include "large_memory.hpp"
#include "plain_json.hpp"
#include "safetensors/key_scopes.hpp"

namespace safering::safetensors {

namespace {

// Table, tensor, shape: what a plain header nests.
constexpr std::uint64_t plain_depth = 3;

// About what a tensor takes of the text; only how much is reserved hangs on it.
constexpr std::size_t text_of_tensor = 100;

bool read_tensor(PlainJson& json, TensorEntry& tensor, const HeaderLimits& limits) {
    bool dtype = false, shape = false, offsets = false;
    const auto field = [&] {
        std::string_view key;
        if (!json.string(key) || !json.take(':'))
            return false;
        if (key == "dtype" && !dtype) {
            std::string_view found;
            dtype = json.string(found);
            const auto parsed = parse_dtype(found);
            tensor.dtype = parsed.value_or(Dtype::u8);
            return dtype && parsed.has_value();
        }
        if (key == "shape" && !shape) {
            shape = json.each('[', ']', [&] {
                tensor.shape.push_back(0);
                return json.number(tensor.shape.back()) && tensor.shape.size() <= limits.rank;
            });
            return shape;
        }
        if (key == "data_offsets" && !offsets) {
            offsets = json.take('[') && json.number(tensor.data.begin) && json.take(',') &&
                      json.number(tensor.data.end) && json.take(']');
            return offsets;
        }
        return false;
    };
    if (!json.each('{', '}', field) || !dtype || !shape || !offsets)
        return false;
    const auto size = byte_size(tensor.dtype, {tensor.shape.data(), tensor.shape.size()});
    return size && tensor.data.begin <= tensor.data.end && tensor.data.size() == *size;
}

bool read_metadata(PlainJson& json, Header& header, const HeaderLimits& limits) {
    return json.each('{', '}', [&] {
        std::string_view key, value;
        if (!json.string(key) || !json.take(':') || !json.string(value))
            return false;
        header.metadata.emplace_back(key, value);
        return header.metadata.size() <= limits.metadata_entries;
    });
}

// Rising names differ; others are sorted first.
template <typename Names>
bool all_differ(const Names& entries, const auto& name_of) {
    if (std::ranges::adjacent_find(entries, std::ranges::greater_equal(), name_of) == entries.end())
        return true;
    KeyScopes scopes;
    scopes.open();
    for (const auto& entry : entries)
        scopes.add(name_of(entry));
    return !scopes.close();
}

} // namespace

std::optional<Header> parse_plain_header(std::string_view text, const HeaderLimits& limits) {
    if (limits.depth < plain_depth)
        return std::nullopt;
    PlainJson json(text);
    Header header;
    reserve_large(header.tensors,
                  std::min<std::size_t>(text.size() / text_of_tensor, limits.tensors));
    TensorNames names;
    bool metadata = false;
    const auto member = [&] {
        std::string_view key;
        if (!json.string(key) || !json.take(':'))
            return false;
        if (key == "__metadata__") {
            const bool first = !metadata;
            metadata = true;
            return first && read_metadata(json, header, limits);
        }
        TensorEntry& tensor = header.tensors.emplace_back();
        tensor.name = names.add(key);
        return key.size() <= limits.name_bytes && header.tensors.size() <= limits.tensors &&
               read_tensor(json, tensor, limits);
    };
    if (!json.each('{', '}', member) || !json.at_end())
        return std::nullopt;
    const bool differ =
        all_differ(header.tensors,
                   [](const TensorEntry& tensor) -> std::string_view { return tensor.name; }) &&
        all_differ(header.metadata,
                   [](const auto& entry) -> std::string_view { return entry.first; });
    if (!differ)
        return std::nullopt;
    return header;
}

} // namespace safering::safetensors
