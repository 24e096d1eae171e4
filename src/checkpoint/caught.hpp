// What an embedder's code throws where errors are values.
#pragma once

#include <exception>
#include <string>
#include <type_traits>
#include <utility>

#include <safering/error.hpp>

namespace safering::checkpoint {

/// Its own Error where it has one, else `operation` with its code or EIO, and its words.
Error error_of(const std::exception& thrown, std::string operation);

/// What `call`, which gives a Result, gives; or the Error of what it throws.
template <typename F>
std::invoke_result_t<F> catching(const char* operation, F&& call) {
    try {
        return std::forward<F>(call)();
    } catch (const std::exception& thrown) {
        return std::unexpected(error_of(thrown, operation));
    }
}

/// What `call`, which gives a Result, gives or throws; `tell` hears why where it fails.
template <typename F, typename Tell>
std::invoke_result_t<F> telling(F&& call, Tell&& tell) {
    try {
        auto result = std::forward<F>(call)();
        if (!result)
            tell(result.error().message());
        return result;
    } catch (const std::exception& thrown) {
        tell(thrown.what());
        throw;
    }
}

} // namespace safering::checkpoint
