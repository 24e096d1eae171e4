// How a job's end reaches whoever waits for it.
#pragma once

#include <exception>
#include <utility>

#include <boost/asio/post.hpp>

#include <safering/error.hpp>
#include <safering/reactor.hpp>

namespace safering::checkpoint {

/// Calls handler(nullptr, value) or handler(exception, {}) from the reactor's executor: neither inside the call
/// that began the job nor while the job holds on to what the handler may destroy. At once where the job was
/// refused in a forked child, which has nobody to run the executor.
template <typename T, typename Handler>
void deliver(Reactor& reactor, Handler handler, Result<T> result) {
    if (result) {
        boost::asio::post(reactor.executor(),
                          [handler = std::move(handler), value = std::move(*result)]() mutable {
                              handler(nullptr, std::move(value));
                          });
        return;
    }
    const bool forked = result.error().code == Errc::io_forked;
    auto exception = std::make_exception_ptr(Exception(std::move(result.error())));
    if (forked)
        return handler(std::move(exception), T{});
    boost::asio::post(reactor.executor(),
                      [handler = std::move(handler), exception = std::move(exception)]() mutable {
                          handler(std::move(exception), T{});
                      });
}

} // namespace safering::checkpoint
