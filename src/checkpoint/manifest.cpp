#include "checkpoint/manifest.hpp"

#include <bit>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "checkpoint/attempt.hpp"
#include "checkpoint/strict_json.hpp"
#include "plain_json.hpp"
#include "utf8.hpp"

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
    const FileExtents& extents = file.extents;
    for (std::size_t i = 0; i < extents.tensors(); ++i) {
        out += i == 0 ? "\n" : ",\n";
        const bool whole = extents.count(i) == 1 && extents.at(extents.first(i)).box == nullptr;
        if (!whole)
            out += '[';
        for (std::size_t k = extents.first(i); k < extents.first(i + 1); ++k) {
            const auto [box, digests] = extents.at(k);
            if (box != nullptr)
                fmt::format_to(std::back_inserter(out), "{}[{},{},",
                               k == extents.first(i) ? "" : ",", shape_text(box->offsets),
                               shape_text(box->sizes));
            out += '"';
            append_hex(out, digests);
            out += box != nullptr ? "\"]" : "\"";
        }
        if (!whole)
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

void read_extents(Reading& reading, const json& entry, FileExtents& extents) {
    extents.add_tensor();
    if (entry.is_string()) {
        extents.add({nullptr, reading.digests(&entry)});
        return;
    }
    for (const json& part : reading.list(&entry, "extents")) {
        if (!part.is_array() || part.size() != 3) {
            reading.wrong("an extent is not [offsets, sizes, digests]");
            break;
        }
        const ChunkStorageMetadata box{reading.shape(&part[0], "offsets"),
                                       reading.shape(&part[1], "sizes")};
        extents.add({&box, reading.digests(&part[2])});
    }
}

ManifestFile read_file(Reading& reading, const json& entry) {
    ManifestFile file{.name = reading.text(entry, "name"),
                      .file_bytes = reading.number(entry, "size"),
                      .data_begin = reading.number(entry, "head"),
                      .head_digest = reading.digest(entry, "head_digest"),
                      .extents = {}};
    for (const json& tensor : reading.list(reading.member(entry, "extents"), "extents"))
        read_extents(reading, tensor, file.extents);
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

// The quick way: a manifest of the form that to_text gives it, and right. Nothing for any other; the long way
// tells what is wrong, if something is.
class PlainReading {
  public:
    explicit PlainReading(std::string_view text) : json_(text) {}

    std::optional<Manifest> run() {
        Manifest out;
        std::string_view attempt, layout, digest, seal;
        std::uint64_t version = 0;
        const bool begun = json_.take('{') && number("safering_manifest", version) &&
                           json_.take(',') && text("attempt", attempt) && json_.take(',') &&
                           text("layout", layout) && json_.take(',') && text("digest", digest) &&
                           json_.take(',') && number("chunk_bytes", out.chunk_bytes) &&
                           json_.take(',') && json_.string("files", ':') &&
                           json_.each('[', ']', [&] { return file(out.files.emplace_back()); }) &&
                           json_.take(',');
        if (!begun || version != 1 || !is_attempt_id(attempt) ||
            (layout != "full" && layout != "sharded") ||
            (digest != "xxh3-64" && digest != "none") || out.chunk_bytes < 4096 ||
            !std::has_single_bit(out.chunk_bytes))
            return std::nullopt;
        out.attempt = attempt;
        out.layout = layout == "full" ? FileLayout::full : FileLayout::sharded;
        out.digests = digest != "none";
        std::string_view key;
        if (!json_.string(key) || !json_.take(':'))
            return std::nullopt;
        if (key == "tensors" && !(json_.each('{', '}', [&] { return tensor(out.tensors); }) &&
                                  json_.take(',') && json_.string(key) && json_.take(':')))
            return std::nullopt;
        if (key == "index" && !(index(out.index.emplace()) && json_.take(',') &&
                                json_.string(key) && json_.take(':')))
            return std::nullopt;
        if (key != "xxh3" || !json_.string(seal) || !json_.take('}') || !json_.at_end())
            return std::nullopt;
        return out;
    }

  private:
    bool number(std::string_view key, std::uint64_t& out) {
        return json_.string(key, ':') && json_.number(out);
    }
    bool text(std::string_view key, std::string_view& out) {
        return json_.string(key, ':') && json_.string(out);
    }
    bool digests(Digests& out) {
        std::string_view hex;
        auto parsed = json_.string(hex) ? parse_hex_digests(hex) : std::nullopt;
        if (parsed)
            out = std::move(*parsed);
        return parsed.has_value();
    }
    bool digest(std::string_view key, std::uint64_t& out) {
        Digests found;
        if (!json_.string(key, ':') || !digests(found) || found.size() != 1)
            return false;
        out = found[0];
        return true;
    }
    bool shape(Shape& out) {
        return json_.each('[', ']', [&] {
            out.push_back(0);
            return json_.number(out.back());
        });
    }
    bool file(ManifestFile& out) {
        std::string_view name;
        if (!json_.take('{') || !text("name", name) || !json_.take(',') ||
            !number("size", out.file_bytes) || !json_.take(',') ||
            !number("head", out.data_begin) || !json_.take(',') ||
            !digest("head_digest", out.head_digest) || !json_.take(',') ||
            !json_.string("extents", ':'))
            return false;
        out.name = name;
        return json_.each('[', ']', [&] { return extents(out.extents); }) && json_.take('}');
    }
    bool extents(FileExtents& out) {
        out.add_tensor();
        Digests found;
        if (json_.sees('"')) {
            if (!digests(found))
                return false;
            out.add({nullptr, found});
            return true;
        }
        return json_.each('[', ']', [&] {
            ChunkStorageMetadata box;
            if (!json_.take('[') || !shape(box.offsets) || !json_.take(',') || !shape(box.sizes) ||
                !json_.take(',') || !digests(found) || !json_.take(']'))
                return false;
            out.add({&box, found});
            return true;
        });
    }
    bool tensor(std::map<std::string, ManifestTensor, std::less<>>& out) {
        std::string_view fqn, dtype;
        Shape size;
        if (!json_.string(fqn) || !json_.take(':') || !json_.take('[') || !json_.string(dtype) ||
            !json_.take(',') || !shape(size) || !json_.take(']') || !parse_dtype(dtype))
            return false;
        const std::size_t before = out.size();
        out.emplace_hint(out.end(), fqn, ManifestTensor{*parse_dtype(dtype), std::move(size)});
        return out.size() != before;
    }
    bool index(ManifestIndex& out) {
        return json_.take('{') && number("size", out.file_bytes) && json_.take(',') &&
               digest("digest", out.digest) && json_.take('}');
    }

    PlainJson json_;
};

Result<Manifest> read_any(std::string_view text, const std::string& file) {
    auto root = parse_strict_json(text, 8, Errc::checkpoint_bad_manifest, "read manifest", file);
    if (!root)
        return std::unexpected(std::move(root.error()));
    Reading reading;
    Manifest manifest = read_manifest(reading, *root);
    if (!reading.fault.empty())
        return std::unexpected(Error{.code = Errc::checkpoint_bad_manifest,
                                     .operation = "read manifest",
                                     .file = file,
                                     .detail = std::move(reading.fault)});
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
    std::optional<Manifest> plain;
    if (find_invalid_utf8(text) == std::string_view::npos)
        plain = PlainReading(text).run();
    auto manifest = plain ? Result<Manifest>(std::move(*plain)) : read_any(text, file);
    if (!manifest)
        return manifest;
    std::set<std::string_view> names;
    for (const ManifestFile& entry : manifest->files) {
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
