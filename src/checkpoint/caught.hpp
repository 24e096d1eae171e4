// What an embedder's code throws where errors are values.
#pragma once

#include <exception>
#include <new>
#include <string>
#include <type_traits>
#include <utility>

#include <safering/error.hpp>

#include "out_of_memory.hpp"

namespace safering::checkpoint {

/// Its own Error where it has one, else `operation` with its code or EIO, and its words.
Error error_of(const std::exception& thrown, std::string operation);

/// What `call`, which gives a Result, gives; or the Error of what it throws.
template <typename F>
std::invoke_result_t<F> catching(const char* operation, F&& call) {
    try {
        return std::forward<F>(call)();
    } catch (const std::bad_alloc&) {
        return std::unexpected(out_of_memory());
    } catch (const std::exception& thrown) {
        return std::unexpected(error_of(thrown, operation));
    }
}

/// What `call`, which gives a Result, gives or throws, but for want of memory, which is an Error; `tell` hears why
/// where it fails.
template <typename F, typename Tell>
std::invoke_result_t<F> telling(F&& call, Tell&& tell) {
    try {
        auto result = or_out_of_memory(std::forward<F>(call));
        if (!result)
            (void)had_memory([&] { tell(result.error().message()); });
        return result;
    } catch (const std::exception& thrown) {
        tell(thrown.what());
        throw;
    }
}

} // namespace safering::checkpoint
