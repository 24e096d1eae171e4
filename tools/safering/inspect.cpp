// `safering inspect PATH`: what a checkpoint holds, from its headers, manifest and index.

#include <filesystem>

#include <fmt/format.h>

#include <safering/checkpoint.hpp>

#include "command.hpp"
#include "text.hpp"

namespace safering::tools {

namespace {

std::string file_name(const Metadata& metadata, const StorageInfo& storage) {
    return std::filesystem::path(metadata.files.at(storage.file)).filename().string();
}

std::uint64_t stored_bytes(const TensorStorageMetadata& tensor) {
    std::uint64_t bytes = 0;
    for (const StorageInfo& storage : tensor.storage)
        bytes += storage.length;
    return bytes;
}

Json chunks_to_json(const Metadata& metadata, const TensorStorageMetadata& tensor) {
    Json chunks = Json::array();
    for (std::size_t i = 0; i < tensor.chunks.size(); ++i) {
        const StorageInfo& storage = tensor.storage.at(i);
        chunks.push_back({
            {"offsets", tensor.chunks[i].offsets},
            {"sizes", tensor.chunks[i].sizes},
            {"file", file_name(metadata, storage)},
            {"bytes", {storage.offset, storage.offset + storage.length}},
        });
    }
    return chunks;
}

Json info_to_json(const CheckpointInfo& info) {
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
    for (const auto& [fqn, tensor] : info.metadata.tensors)
        tensors.push_back({
            {"name", fqn},
            {"dtype", name(tensor.dtype)},
            {"shape", tensor.size},
            {"bytes", stored_bytes(tensor)},
            {"chunks", chunks_to_json(info.metadata, tensor)},
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

void print_files(const CheckpointInfo& info) {
    fmt::print("\nfiles\n");
    for (const CheckpointFileInfo& file : info.files) {
        fmt::print("  {}  {}, tensors: {}\n", escaped(file.name), format_bytes(file.file_bytes),
                   file.tensors);
        for (const auto& [key, value] : file.metadata)
            fmt::print("    {}: {}\n", escaped(key), escaped(value));
    }
}

void print_tensors(const CheckpointInfo& info) {
    fmt::print("\ntensors\n");
    for (const auto& [fqn, tensor] : info.metadata.tensors) {
        fmt::print("  {}  {} {}  {}", escaped(fqn), name(tensor.dtype), format_shape(tensor.size),
                   format_bytes(stored_bytes(tensor)));
        if (tensor.chunks.size() == 1) {
            fmt::print("  {}\n", escaped(file_name(info.metadata, tensor.storage.at(0))));
            continue;
        }
        fmt::print("  in {} chunks\n", tensor.chunks.size());
        for (std::size_t i = 0; i < tensor.chunks.size(); ++i)
            fmt::print("    {} at {}  {}\n", format_shape(tensor.chunks[i].sizes),
                       format_shape(tensor.chunks[i].offsets),
                       escaped(file_name(info.metadata, tensor.storage.at(i))));
    }
}

void print_text(const CheckpointInfo& info) {
    fmt::print("path      {}\n", escaped(info.path));
    fmt::print("found by  {}{}\n", name(info.source),
               info.source != CheckpointSource::manifest ? ""
               : info.digests                            ? ", with digests"
                                                         : ", without digests");
    if (!info.attempt.empty())
        fmt::print("attempt   {}\n", info.attempt);
    fmt::print("holds     {} in {} tensors in {} files\n", format_bytes(info.tensor_bytes),
               info.metadata.tensors.size(), info.files.size());
    print_files(info);
    print_tensors(info);
}

} // namespace

void add_inspect(CLI::App& app, CommonOptions& common, Action& action) {
    auto* command =
        add_command(app, common, "inspect", "List the files and tensors of a checkpoint",
                    "Example: safering inspect --json /checkpoints/step-1000");
    auto path = std::make_shared<std::string>();
    command->add_option("PATH", *path, "A directory or one .safetensors file")->required();
    add_backend_option(*command, common);
    command->callback([&common, &action, path] {
        action = [&common, path] {
            const auto reactor = make_reactor(common.backend);
            const CheckpointInfo info = value_or_throw(inspect_checkpoint(*path, *reactor));
            if (common.json)
                print_json(info_to_json(info));
            else
                print_text(info);
            return exit_good;
        };
    });
}

} // namespace safering::tools
