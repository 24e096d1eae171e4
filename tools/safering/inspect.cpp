// `safering inspect PATH`: what a checkpoint holds, from its headers, manifest and index.

#include <algorithm>
#include <bit>
#include <filesystem>
#include <map>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <safering/checkpoint.hpp>

#include "command.hpp"
#include "inspect_json.hpp"
#include "sharding.hpp"
#include "table.hpp"
#include "tensor_filter.hpp"
#include "text.hpp"

namespace safering::tools {

namespace {

struct InspectArguments {
    std::string path;
    TensorFilter filter;
    bool tree = false;
    std::uint32_t depth = 0;
};

using Tensors = std::vector<const NamedStorage*>;

// "F32 1.2 GiB in 3 tensors, I64 ...", the most bytes first.
std::string dtypes_text(const Tensors& tensors) {
    struct Share {
        std::uint64_t bytes = 0;
        std::size_t tensors = 0;
    };
    std::map<Dtype, Share> shares;
    for (const NamedStorage* tensor : tensors) {
        Share& share = shares[tensor->second.dtype];
        share.bytes += stored_bytes(tensor->second);
        ++share.tensors;
    }
    std::vector<std::pair<Dtype, Share>> ordered(shares.begin(), shares.end());
    std::ranges::stable_sort(ordered, std::greater(),
                             [](const auto& share) { return share.second.bytes; });
    std::vector<std::string> parts;
    for (const auto& [dtype, share] : ordered)
        parts.push_back(fmt::format("{} {} in {}", name(dtype), format_bytes(share.bytes),
                                    counted(share.tensors, "tensor")));
    return fmt::format("{}", fmt::join(parts, ", "));
}

std::string alignment_text(const Tensors& tensors) {
    std::uint64_t least = most_alignment;
    const NamedStorage* worst = nullptr;
    for (const NamedStorage* tensor : tensors)
        if (const std::uint64_t bytes = alignment(tensor->second); bytes < least) {
            least = bytes;
            worst = tensor;
        }
    return worst == nullptr ? fmt::format("every tensor at {}", format_bytes(least))
                            : fmt::format("every tensor at {} or more, {} the least",
                                          format_bytes(least), escaped(worst->first));
}

void print_summary(const CheckpointInfo& info, const InspectArguments& arguments,
                   const Tensors& tensors) {
    fmt::print("path      {}\n", escaped(info.path));
    fmt::print("found by  {}{}\n", name(info.source),
               info.source != CheckpointSource::manifest ? ""
               : info.digests                            ? ", with digests"
                                                         : ", without digests");
    if (!info.attempt.empty())
        fmt::print("attempt   {}\n", info.attempt);
    fmt::print("holds     {} in {} in {}\n", format_bytes(info.tensor_bytes),
               counted(info.metadata.tensors.size(), "tensor"), counted(info.files.size(), "file"));
    if (arguments.filter.excludes_any()) {
        std::uint64_t bytes = 0;
        for (const NamedStorage* tensor : tensors)
            bytes += stored_bytes(tensor->second);
        fmt::print("shown     {} in {}{}\n", format_bytes(bytes), counted(tensors.size(), "tensor"),
                   tensors.empty() && !arguments.filter.names.empty()
                       ? "; --filter takes globs of whole names, as in '*attn*'"
                       : "");
    }
    if (tensors.empty())
        return;
    fmt::print("dtypes    {}\n", dtypes_text(tensors));
    fmt::print("aligned   {}\n", alignment_text(tensors));
}

void print_files(const CheckpointInfo& info, const Terminal& terminal) {
    fmt::print("\n{}\n", terminal.bold("files"));
    for (const CheckpointFileInfo& file : info.files) {
        fmt::print("  {}  {}, tensors: {}\n", escaped(file.name), format_bytes(file.file_bytes),
                   file.tensors);
        for (const auto& [key, value] : file.metadata)
            fmt::print("    {}\n",
                       shortened(escaped(key) + ": " + escaped(value), terminal.width - 4));
    }
}

void print_tensors(const CheckpointInfo& info, const Tensors& tensors, const Terminal& terminal) {
    Table table({{"name", Table::Align::left, true},
                 {"dtype"},
                 {"shape"},
                 {"size", Table::Align::right},
                 {"aligned", Table::Align::right},
                 {"sharding"},
                 {"file", Table::Align::left, true}});
    const auto file = [&](const TensorStorageMetadata& tensor, std::size_t chunk) {
        return escaped(file_name(info.metadata, tensor.storage.at(chunk)));
    };
    for (const NamedStorage* named : tensors) {
        const auto& [fqn, tensor] = *named;
        const bool whole = tensor.chunks.size() == 1;
        table.add({escaped(fqn), std::string(name(tensor.dtype)), format_shape(tensor.size),
                   format_bytes(stored_bytes(tensor)), format_bytes(alignment(tensor)),
                   sharding_text(info, *named), whole ? file(tensor, 0) : ""});
        for (std::size_t i = 0; !whole && i < tensor.chunks.size(); ++i)
            table.add({"  at " + format_shape(tensor.chunks[i].offsets), "",
                       format_shape(tensor.chunks[i].sizes),
                       format_bytes(tensor.storage.at(i).length), "", "", file(tensor, i)});
    }
    fmt::print("\n{}", table.text(terminal));
}

// Rows of the children of a node. Neighbours with numbers for labels and the same below them become one.
void add_tree_rows(Table& table, const TensorTree& node, const std::string& indent,
                   std::uint32_t depth) {
    const auto is_number = [](const TensorTree& child) {
        return child.label.find_first_not_of("0123456789") == child.label.size() - 1 &&
               child.label.size() > 1;
    };
    for (std::size_t i = 0, end = 0; i < node.children.size(); i = end) {
        const TensorTree& child = node.children[i];
        end = i + 1;
        while (is_number(child) && end < node.children.size() && is_number(node.children[end]) &&
               alike(child, node.children[end]))
            ++end;
        const std::size_t folded = end - i;
        const bool last = end == node.children.size();
        std::string label = escaped(child.label);
        if (folded > 1) {
            const std::string& until = node.children[end - 1].label;
            label = fmt::format("{}-{}  ({} alike)", child.label.substr(0, child.label.size() - 1),
                                until, folded);
        }
        table.add({indent + (last ? "└─ " : "├─ ") + label, std::to_string(folded * child.tensors),
                   format_bytes(folded * child.bytes), child.dtype,
                   child.tensor != nullptr ? format_shape(child.tensor->second.size) : ""});
        if (depth != 1)
            add_tree_rows(table, child, indent + (last ? "   " : "│  "), depth - (depth != 0));
    }
}

void print_tree(const TensorTree& root, std::uint32_t depth, const Terminal& terminal) {
    Table table({{"name", Table::Align::left, true},
                 {"tensors", Table::Align::right},
                 {"size", Table::Align::right},
                 {"dtype"},
                 {"shape"}});
    add_tree_rows(table, root, "", depth);
    fmt::print("\n{}", table.text(terminal));
}

ExitCode inspect(const InspectArguments& arguments, const CommonOptions& common) {
    const auto reactor = make_reactor(common.backend);
    const CheckpointInfo info = value_or_throw(inspect_checkpoint(arguments.path, *reactor));
    Tensors tensors;
    for (const NamedStorage& tensor : info.metadata.tensors)
        if (arguments.filter.matches(tensor))
            tensors.push_back(&tensor);
    if (common.json) {
        Json json = to_json(info, tensors);
        if (arguments.tree)
            json["tree"] = to_json(make_tree(tensors), arguments.depth + (arguments.depth != 0));
        print_json(json);
        return exit_good;
    }
    const Terminal terminal = standard_output();
    print_summary(info, arguments, tensors);
    if (!arguments.tree)
        print_files(info, terminal);
    if (tensors.empty())
        return exit_good;
    if (arguments.tree)
        print_tree(make_tree(tensors), arguments.depth, terminal);
    else
        print_tensors(info, tensors, terminal);
    return exit_good;
}

} // namespace

void add_inspect(CLI::App& app, CommonOptions& common, Action& action) {
    auto* command = add_command(
        app, common, "inspect", "List the files and tensors of a checkpoint",
        "Sharding tells of the files' shards, or, where a manifest has it, of the boxes that ranks "
        "saved.\nA tree joins numbered neighbours that hold the same, such as layers.\n"
        "Example: safering inspect /checkpoints/step-1000 --tree\n"
        "Example: safering inspect model.safetensors --filter '*norm*' --dtype F32,BF16\n"
        "Example: safering inspect --json /checkpoints/step-1000 | jq '.tensors[].name'");
    auto arguments = std::make_shared<InspectArguments>();
    add_path(*command, "PATH", arguments->path, "A directory or one .safetensors file");
    auto* tree = command->add_flag("--tree", arguments->tree,
                                   "By the parts of the names, with tensors and bytes below each");
    command->add_option("--depth", arguments->depth, "So many levels of the tree (all)")
        ->check(CLI::Range(1, 4096))
        ->type_name("N")
        ->needs(tree);
    add_filter_options(*command, arguments->filter);
    add_backend_option(*command, common);
    command->callback([&common, &action, arguments] {
        if (arguments->filter.least_bytes > arguments->filter.most_bytes)
            throw CLI::ValidationError("--min-size",
                                       "it is larger than --max-size, so nothing matches");
        action = [&common, arguments] { return inspect(*arguments, common); };
    });
}

} // namespace safering::tools
