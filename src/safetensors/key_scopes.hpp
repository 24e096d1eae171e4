// The keys of every object that is open at one point of a JSON text, to find one that stands twice.
//
// Compares by sorting, not by a hash table: a text can be made whose keys all collide, and sorting
// stays n log n even then.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace safering::safetensors {

class KeyScopes {
  public:
    /// An object begins.
    void open();
    /// A key, its escapes decoded, of the innermost open object. All open keys
    /// together stay below 4 GiB.
    void add(std::string_view key);
    /// The innermost object ends: a key that it holds twice, if there is one.
    std::optional<std::string> close();

  private:
    // 16 bytes: a header may hold ten million short keys.
    struct Key {
        std::uint64_t hash;
        std::uint32_t begin;
        std::uint32_t length;
    };
    struct Mark {
        std::size_t keys;
        std::size_t text;
    };

    std::string_view text_of(const Key& key) const;

    std::string text_;
    std::vector<Key> keys_;
    std::vector<Mark> marks_;
};

} // namespace safering::safetensors
