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
    return or_out_of_memory([&]() -> std::invoke_result_t<F> {
        try {
            return std::forward<F>(call)();
        } catch (const std::bad_alloc&) {
            throw;
        } catch (const std::exception& thrown) {
            return std::unexpected(error_of(thrown, operation));
        }
    });
}

/// As an embedder hears of it; std::bad_alloc where there is no memory for the Exception's words.
std::exception_ptr exception_of(Error error);

/// What `call`, which gives a Result, gives or throws, but for want of memory, which is an Error; `tell` hears why
/// where it fails, or nothing where there is no memory for that.
template <typename F, typename Tell>
std::invoke_result_t<F> telling(F&& call, Tell&& tell) {
    try {
        auto result = or_out_of_memory(std::forward<F>(call));
        if (!result) {
            std::string why;
            (void)had_memory([&] { why = result.error().message(); });
            (void)had_memory([&] { tell(why); });
        }
        return result;
    } catch (const std::exception& thrown) {
        std::string why;
        (void)had_memory([&] { why = thrown.what(); });
        (void)had_memory([&] { tell(why); });
        throw;
    }
}

} // namespace safering::checkpoint
