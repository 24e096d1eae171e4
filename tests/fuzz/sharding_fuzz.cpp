// Any text as DCP_SHARDING_INFO of one of two shards: refused, or chunks that tile their tensors.
#include "checkpoint/stored_checkpoint.hpp"
#include "plan/tiling.hpp"

using namespace safering;
using namespace safering::checkpoint;

namespace {

StoredFile shard(std::string info) {
    StoredFile file{.name = "f", .path = "f", .file = {}, .header = {}, .extents = {}, .hulls = {}};
    file.header.data_begin = 8;
    file.header.tensors = {{"a", Dtype::u8, {2, 3}, {0, 6}}, {"b", Dtype::f32, {}, {6, 10}}};
    file.header.metadata = {{"DCP_SHARDING_INFO", std::move(info)}};
    return file;
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    std::vector<StoredFile> files;
    files.push_back(shard(std::string(reinterpret_cast<const char*>(data), size)));
    StoredFile other = shard(R"({"a":{"saved_offsets":[2,0]}})");
    other.header.tensors.pop_back();
    files.push_back(std::move(other));
    const auto metadata = collect_metadata(files, FileList{}, nullptr, ShardingInfo::apply);
    if (!metadata)
        return 0;
    for (const auto& [fqn, tensor] : metadata->tensors) {
        SAFERING_ASSERT(tensor.chunks.size() == tensor.storage.size());
        SAFERING_ASSERT(check_tiling(fqn, tensor.size, tensor.chunks));
    }
    return 0;
}
