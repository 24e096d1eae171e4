// Headers written from entries that own their names.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "safetensors/header.hpp"

namespace safering::safetensors {

inline std::vector<TensorEntryView> views_of(const std::vector<TensorEntry>& entries) {
    std::vector<TensorEntryView> views;
    for (const TensorEntry& entry : entries)
        views.push_back(
            {entry.name, entry.dtype, {entry.shape.data(), entry.shape.size()}, entry.data});
    return views;
}

inline Result<void> assign_offsets(std::vector<TensorEntry>& entries) {
    std::vector<TensorEntryView> views = views_of(entries);
    std::vector<std::uint32_t> origin;
    if (Result<void> assigned = assign_offsets(views, &origin); !assigned)
        return assigned;
    std::vector<TensorEntry> sorted;
    for (std::size_t i = 0; i < views.size(); ++i) {
        sorted.push_back(entries[origin[i]]);
        sorted.back().data = views[i].data;
    }
    entries = std::move(sorted);
    return {};
}

inline Result<std::string>
write_entries(const std::vector<TensorEntry>& entries,
              const std::vector<std::pair<std::string, std::string>>& metadata,
              std::uint64_t alignment = 4096) {
    return write_header(views_of(entries), metadata, alignment);
}

} // namespace safering::safetensors
