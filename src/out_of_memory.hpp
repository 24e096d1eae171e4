// The one failure that can not be put into many words. Inside the library it is std::bad_alloc; where errors are
// values, and on threads that nothing may be thrown on, it becomes one.
#pragma once

#include <new>
#include <type_traits>
#include <utility>

#include <safering/error.hpp>

namespace safering {

/// Needs no memory: its words are short enough for that.
inline Error out_of_memory() {
    return {.code = std::make_error_code(std::errc::not_enough_memory), .operation = "allocate"};
}

/// What its partners hear of a rank that could not begin. As a std::string it needs no memory either.
inline constexpr const char* no_memory = "no memory";

/// A copy, or that there was no memory for its words.
inline Error copy_of(const Error& error) {
    try {
        return error;
    } catch (const std::bad_alloc&) {
        return out_of_memory();
    }
}

/// What `call`, which gives a Result, gives; or that it found no memory.
template <typename F>
std::invoke_result_t<F> or_out_of_memory(F&& call) {
    try {
        return std::forward<F>(call)();
    } catch (const std::bad_alloc&) {
        return std::unexpected(out_of_memory());
    }
}

/// Whether `call` found all the memory that it wanted.
template <typename F>
bool had_memory(F&& call) {
    try {
        std::forward<F>(call)();
        return true;
    } catch (const std::bad_alloc&) {
        return false;
    }
}

} // namespace safering
