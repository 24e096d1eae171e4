// How an asynchronous save or load ends: outside of the call that began it and of the job that did it.
#pragma once

#include <exception>
#include <utility>

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>

#include <safering/error.hpp>

namespace safering::checkpoint {

/// Calls handler(std::exception_ptr, Value) on the reactor's executor; at once where this is a forked child
/// of the reactor's process, in which nobody runs that executor.
template <typename Value, typename Handler>
void deliver(const boost::asio::io_context::executor_type& executor, Result<Value> result,
             Handler handler) {
    const bool forked = !result && result.error().code == Errc::io_forked;
    auto call = [result = std::move(result), handler = std::move(handler)]() mutable {
        if (result)
            handler(nullptr, std::move(*result));
        else
            handler(std::make_exception_ptr(Exception(std::move(result.error()))), {});
    };
    if (forked)
        call();
    else
        boost::asio::post(executor, std::move(call));
}

} // namespace safering::checkpoint
