#include "name_tree.hpp"

#include <algorithm>

namespace safering::test {

std::uint32_t Names::number(std::string_view name) {
    return numbers_.try_emplace(std::string(name), static_cast<std::uint32_t>(numbers_.size() + 1))
        .first->second;
}

std::vector<std::uint32_t> Names::path(std::string_view path) {
    std::vector<std::uint32_t> out;
    while (!path.empty()) {
        const std::size_t slash = std::min(path.find('/'), path.size());
        const std::string_view part = path.substr(0, slash);
        SAFERING_ASSERT(part != "..");
        if (!part.empty() && part != ".")
            out.push_back(number(part));
        path.remove_prefix(std::min(slash + 1, path.size()));
    }
    return out;
}

NameTree::NameTree(const SimulatedTree& tree, Names& names, std::vector<FileKind>& kinds) {
    if (kinds.size() <= root)
        kinds.resize(root + 1, FileKind::directory);
    add(tree, root, names, kinds);
}

void NameTree::add(const SimulatedTree& tree, Inode directory, Names& names,
                   std::vector<FileKind>& kinds) {
    for (const auto& [name, inode] : tree.inode(directory)->entries) {
        entries_.push_back({directory, names.number(name), inode});
        if (kinds.size() <= inode)
            kinds.resize(inode + 1, FileKind::other);
        kinds[inode] = tree.inode(inode)->kind;
        SAFERING_ASSERT(kinds[inode] != FileKind::symlink);
        if (kinds[inode] == FileKind::directory)
            add(tree, inode, names, kinds);
    }
}

Inode NameTree::find(Inode directory, std::uint32_t name) const {
    for (const Entry& entry : entries_)
        if (entry.directory == directory && entry.name == name)
            return entry.inode;
    return 0;
}

Inode NameTree::find(const std::vector<std::uint32_t>& path) const {
    Inode inode = root;
    for (const std::uint32_t name : path) {
        inode = find(inode, name);
        if (inode == 0)
            break;
    }
    return inode;
}

void NameTree::set(Inode directory, std::uint32_t name, Inode inode) {
    for (Entry& entry : entries_)
        if (entry.directory == directory && entry.name == name) {
            entry.inode = inode;
            return;
        }
    entries_.push_back({directory, name, inode});
}

void NameTree::forget(const NameChange& change) {
    for (Entry& entry : entries_)
        if (entry.directory == change.directory && entry.name == change.name &&
            entry.inode == change.inode) {
            entry = entries_.back();
            entries_.pop_back();
            return;
        }
}

void NameTree::apply(const NameChange& change) {
    switch (change.op) {
    case Opcode::open:
    case Opcode::make_directory: return set(change.directory, change.name, change.inode);
    case Opcode::unlink:
    case Opcode::remove_directory: return forget(change);
    case Opcode::rename:
        forget(change);
        return set(change.new_directory, change.new_name, change.inode);
    default: SAFERING_ASSERT(false);
    }
}

} // namespace safering::test
