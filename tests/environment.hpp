// Numbers that a longer run of a test takes from the environment.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace safering::test {

inline std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

} // namespace safering::test
