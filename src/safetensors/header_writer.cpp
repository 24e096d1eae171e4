#include <bit>
#include <charconv>
#include <cstring>
#include <unordered_set>

#include <fmt/format.h>

#include "large_memory.hpp"
#include "safetensors/header.hpp"
#include "safetensors/json_string.hpp"
#include "utf8.hpp"

namespace safering::safetensors {

namespace {

constexpr std::uint64_t length_bytes = sizeof(std::uint64_t);

std::unexpected<Error> refuse(Errc code, std::string_view tensor, std::string detail) {
    return std::unexpected(Error{.code = code,
                                 .operation = "write header",
                                 .tensor = std::string(tensor),
                                 .detail = std::move(detail)});
}

void append_number(std::string& out, std::uint64_t value) {
    char digits[20];
    const auto [end, error] = std::to_chars(std::begin(digits), std::end(digits), value);
    SAFERING_ASSERT(error == std::errc());
    out.append(digits, end);
}

void append_tensor(std::string& out, const TensorEntryView& tensor) {
    append_json_string(out, tensor.name);
    out += R"(:{"dtype":")";
    out += name(tensor.dtype);
    out += R"(","shape":[)";
    for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
        if (i != 0)
            out += ',';
        append_number(out, tensor.shape[i]);
    }
    out += R"(],"data_offsets":[)";
    append_number(out, tensor.data.begin);
    out += ',';
    append_number(out, tensor.data.end);
    out += "]}";
}

// Of the header, without metadata and with shapes and offsets as they mostly are.
std::size_t likely_bytes(const std::vector<TensorEntryView>& tensors) {
    std::size_t bytes = 4096;
    for (const TensorEntryView& tensor : tensors)
        bytes += tensor.name.size() + 72 + 6 * tensor.shape.size();
    return bytes;
}

Result<void> check_tensor(const TensorEntryView& tensor, const HeaderLimits& limits) {
    if (tensor.name == "__metadata__")
        return refuse(Errc::plan_bad_name, tensor.name,
                      "expected a name that the format leaves free");
    if (const std::size_t at = find_invalid_utf8(tensor.name); at != std::string::npos)
        return refuse(Errc::plan_bad_name, tensor.name,
                      fmt::format("expected UTF-8, found byte {:#04x} at {}",
                                  static_cast<unsigned char>(tensor.name[at]), at));
    if (tensor.name.size() > limits.name_bytes)
        return refuse(Errc::header_name_too_long, tensor.name,
                      fmt::format("expected at most {} bytes, found {}", limits.name_bytes,
                                  tensor.name.size()));
    if (tensor.shape.size() > limits.rank)
        return refuse(Errc::header_rank_too_high, tensor.name,
                      fmt::format("expected at most {} dimensions, found {}", limits.rank,
                                  tensor.shape.size()));
    return {};
}

Result<void> check_metadata(const std::vector<std::pair<std::string, std::string>>& metadata,
                            const HeaderLimits& limits) {
    if (metadata.size() > limits.metadata_entries)
        return refuse(Errc::header_bad_metadata, {},
                      fmt::format("__metadata__: expected at most {} entries, found {}",
                                  limits.metadata_entries, metadata.size()));
    std::unordered_set<std::string_view> keys;
    for (const auto& [key, value] : metadata) {
        if (find_invalid_utf8(key) != std::string::npos ||
            find_invalid_utf8(value) != std::string::npos)
            return refuse(Errc::header_not_utf8, {},
                          fmt::format("__metadata__ \"{}\": expected UTF-8", escaped(key)));
        if (!keys.insert(key).second)
            return refuse(Errc::header_duplicate_key, {},
                          fmt::format("__metadata__: expected each key once, found \"{}\" twice",
                                      escaped(key)));
    }
    return {};
}

void append_metadata(std::string& out,
                     const std::vector<std::pair<std::string, std::string>>& metadata) {
    out += R"("__metadata__":{)";
    for (const auto& [key, value] : metadata) {
        append_json_string(out, key);
        out += ':';
        append_json_string(out, value);
        out += ',';
    }
    out.back() = '}';
    out += ',';
}

} // namespace

Result<std::string> write_header(const std::vector<TensorEntryView>& tensors,
                                 const std::vector<std::pair<std::string, std::string>>& metadata,
                                 std::uint64_t alignment) {
    SAFERING_ASSERT(std::has_single_bit(alignment) && alignment >= length_bytes);
    const HeaderLimits limits;
    if (tensors.size() > limits.tensors)
        return refuse(
            Errc::header_too_many_tensors, {},
            fmt::format("expected at most {} tensors, found {}", limits.tensors, tensors.size()));
    if (Result<void> good = check_metadata(metadata, limits); !good)
        return std::unexpected(std::move(good.error()));

    // The length's place, then '{' and a comma after every member, the last of which becomes '}'.
    std::string out(length_bytes, '\0');
    reserve_large(out, likely_bytes(tensors));
    out += '{';
    if (!metadata.empty())
        append_metadata(out, metadata);
    std::uint64_t at = 0;
    for (const TensorEntryView& tensor : tensors) {
        if (Result<void> good = check_tensor(tensor, limits); !good)
            return std::unexpected(std::move(good.error()));
        SAFERING_ASSERT(tensor.data.begin == at && tensor.data.end >= at);
        at = tensor.data.end;
        append_tensor(out, tensor);
        out += ',';
        if (out.size() > length_bytes + limits.header_bytes)
            break;
    }
    if (out.back() == ',')
        out.back() = '}';
    else
        out += '}';

    const std::uint64_t padded = round_up(out.size(), alignment);
    if (padded - length_bytes > limits.header_bytes)
        return refuse(Errc::header_too_large, {},
                      fmt::format("expected at most {} bytes for {} tensors and {} metadata "
                                  "entries, found more; save to more files",
                                  limits.header_bytes, tensors.size(), metadata.size()));
    out.resize(padded, ' ');
    const std::uint64_t length = padded - length_bytes;
    std::memcpy(out.data(), &length, length_bytes);
    return out;
}

} // namespace safering::safetensors
