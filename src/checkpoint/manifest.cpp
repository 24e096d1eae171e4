#include "checkpoint/manifest.hpp"

#include <bit>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "checkpoint/attempt.hpp"
#include "checkpoint/strict_json.hpp"

namespace safering::checkpoint {

namespace {

using nlohmann::json;

std::string shape_text(const Shape& shape) {
    return fmt::format("[{}]", fmt::join(shape, ","));
}

void append_file(std::string& out, const ManifestFile& file) {
    fmt::format_to(std::back_inserter(out),
                   R"({{"name":{},"size":{},"head":{},"head_digest":"{:016x}","extents":[)",
                   json_string(file.name), file.file_bytes, file.data_begin, file.head_digest);
    for (std::size_t i = 0; i < file.tensors.size(); ++i) {
        const auto& extents = file.tensors[i];
        out += i == 0 ? "\n" : ",\n";
        if (extents.size() == 1 && extents[0].box.sizes.empty()) {
            out += '"' + hex_digests(extents[0].digests) + '"';
            continue;
        }
        out += '[';
        for (std::size_t k = 0; k < extents.size(); ++k)
            out += fmt::format("{}[{},{},\"{}\"]", k == 0 ? "" : ",",
                               shape_text(extents[k].box.offsets), shape_text(extents[k].box.sizes),
                               hex_digests(extents[k].digests));
        out += ']';
    }
    out += "]}";
}

// Reads a parsed manifest; the first thing that is not as it should be is kept in `fault`.
class Reading {
  public:
    std::string fault;

    const json* member(const json& object, const char* key) {
        if (!object.is_object())
            return wrong(fmt::format("expected an object with \"{}\"", key));
        const auto found = object.find(key);
        return found == object.end() ? wrong(fmt::format("\"{}\" is missing", key)) : &*found;
    }
    std::uint64_t number(const json* value, const char* what) {
        if (value != nullptr && value->is_number_unsigned())
            return value->get<std::uint64_t>();
        wrong(fmt::format("{} is not an unsigned integer", what));
        return 0;
    }
    std::uint64_t number(const json& object, const char* key) {
        return number(member(object, key), key);
    }
    std::string text(const json* value, const char* what) {
        if (value != nullptr && value->is_string())
            return value->get<std::string>();
        wrong(fmt::format("{} is not a string", what));
        return {};
    }
    std::string text(const json& object, const char* key) { return text(member(object, key), key); }
    const json& list(const json* value, const char* what) {
        static const json nothing = json::array();
        if (value != nullptr && value->is_array())
            return *value;
        wrong(fmt::format("{} is not a list", what));
        return nothing;
    }
    Shape shape(const json* value, const char* what) {
        Shape out;
        for (const json& extent : list(value, what))
            out.push_back(number(&extent, what));
        return out;
    }
    Digests digests(const json* value) {
        auto parsed = parse_hex_digests(text(value, "digests"));
        if (!parsed)
            wrong("digests are not groups of 16 hex digits");
        return parsed.value_or(Digests{});
    }
    std::uint64_t digest(const json& object, const char* key) {
        const auto parsed = digests(member(object, key));
        if (parsed.size() != 1)
            wrong(fmt::format("\"{}\" is not one digest", key));
        return parsed.size() == 1 ? parsed[0] : 0;
    }
    const json* wrong(std::string what) {
        if (fault.empty())
            fault = std::move(what);
        return nullptr;
    }
};

TensorExtents read_extents(Reading& reading, const json& entry) {
    TensorExtents extents;
    if (entry.is_string()) {
        extents.push_back({.box = {}, .digests = reading.digests(&entry)});
        return extents;
    }
    for (const json& part : reading.list(&entry, "extents")) {
        if (!part.is_array() || part.size() != 3) {
            reading.wrong("an extent is not [offsets, sizes, digests]");
            break;
        }
        extents.push_back(
            {.box = {reading.shape(&part[0], "offsets"), reading.shape(&part[1], "sizes")},
             .digests = reading.digests(&part[2])});
    }
    return extents;
}

ManifestFile read_file(Reading& reading, const json& entry) {
    ManifestFile file{.name = reading.text(entry, "name"),
                      .file_bytes = reading.number(entry, "size"),
                      .data_begin = reading.number(entry, "head"),
                      .head_digest = reading.digest(entry, "head_digest"),
                      .tensors = {}};
    for (const json& tensor : reading.list(reading.member(entry, "extents"), "extents"))
        file.tensors.push_back(read_extents(reading, tensor));
    return file;
}

Manifest read_manifest(Reading& reading, const json& root) {
    Manifest manifest;
    if (reading.number(root, "safering_manifest") != 1)
        reading.wrong("unknown format version; a newer safering may read it");
    manifest.attempt = reading.text(root, "attempt");
    if (!is_attempt_id(manifest.attempt))
        reading.wrong("attempt is not 32 hex digits");
    const std::string layout = reading.text(root, "layout");
    manifest.layout = layout == "sharded" ? FileLayout::sharded : FileLayout::full;
    if (layout != "full" && layout != "sharded")
        reading.wrong("unknown layout");
    const std::string digest = reading.text(root, "digest");
    manifest.digests = digest == "xxh3-64";
    if (!manifest.digests && digest != "none")
        reading.wrong("unknown digest");
    manifest.chunk_bytes = reading.number(root, "chunk_bytes");
    if (manifest.chunk_bytes < 4096 || !std::has_single_bit(manifest.chunk_bytes))
        reading.wrong("chunk_bytes is not a power of two of at least 4096");
    for (const json& file : reading.list(reading.member(root, "files"), "files"))
        manifest.files.push_back(read_file(reading, file));
    if (const auto tensors = root.find("tensors"); tensors != root.end())
        for (const auto& [fqn, entry] : tensors->items()) {
            const json& pair = reading.list(&entry, "tensors");
            const auto dtype = parse_dtype(pair.size() == 2 ? reading.text(&pair[0], "dtype") : "");
            if (!dtype) {
                reading.wrong(fmt::format("tensor \"{}\" is not [dtype, shape]", escaped(fqn)));
                break;
            }
            manifest.tensors.emplace(fqn, ManifestTensor{*dtype, reading.shape(&pair[1], "shape")});
        }
    if (const auto index = root.find("index"); index != root.end())
        manifest.index = ManifestIndex{.file_bytes = reading.number(*index, "size"),
                                       .digest = reading.digest(*index, "digest")};
    return manifest;
}

} // namespace

std::string to_text(const Manifest& manifest) {
    std::string out = fmt::format(
        R"({{"safering_manifest":1,"attempt":"{}","layout":"{}","digest":"{}","chunk_bytes":{},)"
        "\n\"files\":[",
        manifest.attempt, manifest.layout == FileLayout::sharded ? "sharded" : "full",
        manifest.digests ? "xxh3-64" : "none", manifest.chunk_bytes);
    for (std::size_t i = 0; i < manifest.files.size(); ++i) {
        out += i == 0 ? "\n" : ",\n";
        append_file(out, manifest.files[i]);
    }
    out += ']';
    if (!manifest.tensors.empty()) {
        out += ",\n\"tensors\":";
        char separator = '{';
        for (const auto& [fqn, tensor] : manifest.tensors) {
            out += fmt::format("{}\n{}:[\"{}\",{}]", separator, json_string(fqn),
                               name(tensor.dtype), shape_text(tensor.size));
            separator = ',';
        }
        out += '}';
    }
    if (manifest.index)
        out += fmt::format(",\n\"index\":{{\"size\":{},\"digest\":\"{:016x}\"}}",
                           manifest.index->file_bytes, manifest.index->digest);
    return seal_json(std::move(out));
}

Result<Manifest> parse_manifest(std::string_view text, const std::string& file) {
    const auto bad = [&](Errc code, std::string detail) {
        return std::unexpected(Error{
            .code = code, .operation = "read manifest", .file = file, .detail = std::move(detail)});
    };
    if (!is_sealed_json(text))
        return bad(
            Errc::checkpoint_bad_manifest,
            "its own digest does not match: it was changed or cut short; restore it, or remove it "
            "to load the checkpoint unverified");
    auto root = parse_strict_json(text, 8, Errc::checkpoint_bad_manifest, "read manifest", file);
    if (!root)
        return std::unexpected(std::move(root.error()));
    Reading reading;
    Manifest manifest = read_manifest(reading, *root);
    if (!reading.fault.empty())
        return bad(Errc::checkpoint_bad_manifest, reading.fault);
    std::set<std::string_view> names;
    for (const ManifestFile& entry : manifest.files) {
        if (!is_safe_file_name(entry.name))
            return bad(Errc::checkpoint_unsafe_name,
                       fmt::format("\"{}\" must be one path component ending in .safetensors",
                                   escaped(entry.name)));
        if (!names.insert(entry.name).second)
            return bad(Errc::checkpoint_bad_manifest,
                       fmt::format("file \"{}\" is listed twice", escaped(entry.name)));
    }
    return manifest;
}

std::uint64_t cell_count(ByteRange hull, std::uint64_t chunk_bytes) {
    return hull.empty() ? 0 : (hull.end - 1) / chunk_bytes - hull.begin / chunk_bytes + 1;
}

} // namespace safering::checkpoint
