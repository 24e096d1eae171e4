#include "safetensors/key_scopes.hpp"

#include <algorithm>
#include <limits>

#include <xxhash.h>

#include <safering/error.hpp>

namespace safering::safetensors {

void KeyScopes::open() {
    marks_.push_back({.keys = keys_.size(), .text = text_.size()});
}

void KeyScopes::add(std::string_view key) {
    SAFERING_ASSERT(!marks_.empty());
    SAFERING_ASSERT(text_.size() + key.size() <= std::numeric_limits<std::uint32_t>::max());
    keys_.push_back({.hash = XXH3_64bits(key.data(), key.size()),
                     .begin = static_cast<std::uint32_t>(text_.size()),
                     .length = static_cast<std::uint32_t>(key.size())});
    text_.append(key);
}

std::optional<std::string> KeyScopes::close() {
    SAFERING_ASSERT(!marks_.empty());
    const Mark mark = marks_.back();
    marks_.pop_back();
    const auto first = keys_.begin() + static_cast<std::ptrdiff_t>(mark.keys);
    std::sort(first, keys_.end(), [&](const Key& a, const Key& b) {
        return a.hash != b.hash ? a.hash < b.hash : text_of(a) < text_of(b);
    });
    const auto twice = std::adjacent_find(first, keys_.end(), [&](const Key& a, const Key& b) {
        return a.hash == b.hash && text_of(a) == text_of(b);
    });
    std::optional<std::string> found;
    if (twice != keys_.end())
        found = text_of(*twice);
    keys_.resize(mark.keys);
    text_.resize(mark.text);
    return found;
}

std::string_view KeyScopes::text_of(const Key& key) const {
    return std::string_view(text_).substr(key.begin, key.length);
}

} // namespace safering::safetensors
