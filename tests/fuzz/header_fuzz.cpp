// Any bytes as a header: parse_header refuses them or returns a table that keeps the invariant and
// that write_header can write again.
//
// The input is two bytes, the little-endian size of the data section, and then the JSON text.
#include <cstdint>
#include <string_view>

#include "../safetensors/entries.hpp"

using namespace safering;
using namespace safering::safetensors;

namespace {

void check_invariant(const Header& header, std::uint64_t data_bytes) {
    std::uint64_t at = 0;
    for (const TensorEntry& tensor : header.tensors) {
        SAFERING_ASSERT(tensor.data.begin == at && tensor.data.begin <= tensor.data.end);
        const Result<std::uint64_t> size =
            byte_size(tensor.dtype, {tensor.shape.data(), tensor.shape.size()});
        SAFERING_ASSERT(size && *size == tensor.data.size());
        at = tensor.data.end;
    }
    SAFERING_ASSERT(at == data_bytes);
}

void check_error(const Error& error) {
    SAFERING_ASSERT(error.code.category() == safering_category());
    SAFERING_ASSERT(error.file == "f" && !error.detail.empty());
    for (const char byte : error.message())
        SAFERING_ASSERT(static_cast<unsigned char>(byte) >= 0x20);
}

void check_written(const Header& header, std::uint64_t data_bytes) {
    const Result<std::string> head = write_entries(header.tensors, header.metadata, 8);
    SAFERING_ASSERT(head);
    const Result<Header> again = parse_head(*head, head->size() + data_bytes, "f");
    SAFERING_ASSERT(again && again->tensors == header.tensors &&
                    again->metadata == header.metadata);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string_view input(reinterpret_cast<const char*>(data), size);
    if (const Result<Header> header = parse_head(input, size, "f"); !header)
        check_error(header.error());
    if (size < 2)
        return 0;
    const std::uint64_t data_bytes = data[0] | std::uint64_t{data[1]} << 8;
    const std::string_view json = input.substr(2);
    const Result<Header> header = parse_header(json, 8 + json.size() + data_bytes, "f");
    if (!header) {
        check_error(header.error());
        return 0;
    }
    check_invariant(*header, data_bytes);
    check_written(*header, data_bytes);
    return 0;
}
