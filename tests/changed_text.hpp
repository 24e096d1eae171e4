// Texts that differ from a JSON text by one byte, for what must hold of each.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include <safering/error.hpp>

namespace safering::test {

/// Calls `check` with `text` without each of its bytes, and with each replaced by whatever means something to a parser.
template <typename Check>
void for_each_change(const std::string& text, Check check) {
    for (std::size_t i = 0; i < text.size(); ++i) {
        check(std::string(text).erase(i, 1));
        for (const char other : std::string_view("}]\":,0 z"))
            if (other != text[i])
                check(std::string(text).replace(i, 1, 1, other));
    }
}

/// The same value, or none from either.
template <typename T>
bool same(const Result<T>& a, const Result<T>& b) {
    return a ? b && *a == *b : !b;
}

} // namespace safering::test
