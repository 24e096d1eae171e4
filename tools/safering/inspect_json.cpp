#include "inspect_json.hpp"

#include "sharding.hpp"

namespace safering::tools {

namespace {

Json box_to_json(const ChunkStorageMetadata& box) {
    return {{"offsets", box.offsets}, {"sizes", box.sizes}};
}

Json chunks_to_json(const CheckpointInfo& info, const NamedStorage& named) {
    const auto& [fqn, tensor] = named;
    Json chunks = Json::array();
    for (std::size_t i = 0; i < tensor.chunks.size(); ++i) {
        const StorageInfo& storage = tensor.storage.at(i);
        Json chunk = box_to_json(tensor.chunks[i]);
        chunk["file"] = file_name(info.metadata, storage);
        chunk["bytes"] = {storage.offset, storage.offset + storage.length};
        chunk["alignment"] = alignment(storage);
        if (const auto saved = info.saved_boxes.find({fqn, tensor.chunks[i].offsets});
            saved != info.saved_boxes.end()) {
            chunk["saved_as"] = Json::array();
            for (const ChunkStorageMetadata& box : saved->second)
                chunk["saved_as"].push_back(box_to_json(box));
        }
        chunks.push_back(std::move(chunk));
    }
    return chunks;
}

} // namespace

Json to_json(const CheckpointInfo& info, std::span<const NamedStorage* const> shown) {
    Json files = Json::array();
    for (const CheckpointFileInfo& file : info.files) {
        Json metadata = Json::object();
        for (const auto& [key, value] : file.metadata)
            metadata[key] = value;
        files.push_back({
            {"name", file.name},
            {"file_bytes", file.file_bytes},
            {"data_begin", file.data_begin},
            {"tensors", file.tensors},
            {"metadata", std::move(metadata)},
        });
    }
    // A list: an object with a key for each name would lose the order on its
    // way through most parsers.
    Json tensors = Json::array();
    for (const NamedStorage* named : shown)
        tensors.push_back({
            {"name", named->first},
            {"dtype", name(named->second.dtype)},
            {"shape", named->second.size},
            {"bytes", stored_bytes(named->second)},
            {"sharding", sharding_text(info, *named)},
            {"chunks", chunks_to_json(info, *named)},
        });
    return {
        {"path", info.path},
        {"source", name(info.source)},
        {"attempt", info.attempt},
        {"digests", info.digests},
        {"tensor_bytes", info.tensor_bytes},
        {"files", std::move(files)},
        {"tensors", std::move(tensors)},
    };
}

Json to_json(const TensorTree& node, std::uint32_t depth) {
    Json out{{"label", node.label},
             {"tensors", node.tensors},
             {"bytes", node.bytes},
             {"dtype", node.dtype}};
    if (node.tensor != nullptr)
        out["name"] = node.tensor->first;
    if (node.children.empty() || depth == 1)
        return out;
    out["children"] = Json::array();
    for (const TensorTree& child : node.children)
        out["children"].push_back(to_json(child, depth - (depth != 0)));
    return out;
}

} // namespace safering::tools
