#include "tensor_tree.hpp"

#include <algorithm>
#include <cstring>

namespace safering::tools {

namespace {

std::string_view first_part(std::string_view rest) {
    const std::size_t end = rest.find_first_of("./");
    return end == std::string_view::npos ? rest : rest.substr(0, end + 1);
}

// Numbers by their values; the rest, and what versions of (it stops at a NUL), by bytes.
bool comes_before(const TensorTree& a, const TensorTree& b) {
    const int order = strverscmp(a.label.c_str(), b.label.c_str());
    return order != 0 ? order < 0 : a.label < b.label;
}

void join_only_child(TensorTree& node) {
    while (node.tensor == nullptr && node.children.size() == 1) {
        TensorTree child = std::move(node.children.front());
        child.label = node.label + child.label;
        node = std::move(child);
    }
}

// Of tensors in the order of their names, whose first `depth` bytes are the same.
void add_children(TensorTree& node, std::span<const NamedStorage* const> tensors,
                  std::size_t depth) {
    for (std::size_t begin = 0; begin < tensors.size();) {
        const std::string_view name = tensors[begin]->first;
        if (name.size() == depth) {
            node.tensor = tensors[begin++];
            node.bytes += stored_bytes(node.tensor->second);
            node.tensors += 1;
            node.dtype = safering::name(node.tensor->second.dtype);
            continue;
        }
        const std::string_view part = first_part(name.substr(depth));
        std::size_t end = begin + 1;
        while (end < tensors.size() &&
               first_part(std::string_view(tensors[end]->first).substr(depth)) == part)
            ++end;
        TensorTree child{.label = std::string(part)};
        add_children(child, tensors.subspan(begin, end - begin), depth + part.size());
        join_only_child(child);
        node.tensors += child.tensors;
        node.bytes += child.bytes;
        node.dtype = node.dtype.empty() || node.dtype == child.dtype ? child.dtype : "mixed";
        node.children.push_back(std::move(child));
        begin = end;
    }
    std::ranges::sort(node.children, comes_before);
}

} // namespace

TensorTree make_tree(std::span<const NamedStorage* const> tensors) {
    std::vector<const NamedStorage*> ordered(tensors.begin(), tensors.end());
    std::ranges::sort(
        ordered, {}, [](const NamedStorage* tensor) -> const TensorName& { return tensor->first; });
    TensorTree root;
    add_children(root, ordered, 0);
    return root;
}

bool alike(const TensorTree& a, const TensorTree& b) {
    if (a.bytes != b.bytes || a.children.size() != b.children.size() ||
        (a.tensor == nullptr) != (b.tensor == nullptr))
        return false;
    if (a.tensor != nullptr && (a.tensor->second.dtype != b.tensor->second.dtype ||
                                a.tensor->second.size != b.tensor->second.size))
        return false;
    return std::ranges::equal(a.children, b.children,
                              [](const TensorTree& left, const TensorTree& right) {
                                  return left.label == right.label && alike(left, right);
                              });
}

std::uint64_t stored_bytes(const TensorStorageMetadata& tensor) {
    std::uint64_t bytes = 0;
    for (const StorageInfo& storage : tensor.storage)
        bytes += storage.length;
    return bytes;
}

} // namespace safering::tools
