// Any text as an index: refused, or names that stay in the directory and come back when they are written.
#include "checkpoint/attempt.hpp"
#include "checkpoint/index.hpp"

using namespace safering;
using namespace safering::checkpoint;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    const Result<WeightMap> weight_map = parse_index(text, "f");
    if (!weight_map) {
        SAFERING_ASSERT(weight_map.error().file == "f");
        return 0;
    }
    for (const auto& [fqn, file] : *weight_map)
        SAFERING_ASSERT(is_safe_file_name(file) && file.find('/') == std::string::npos);
    const Result<WeightMap> again = parse_index(index_text(*weight_map, 7), "f");
    SAFERING_ASSERT(again && *again == *weight_map);
    return 0;
}
