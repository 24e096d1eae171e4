// What the asynchronous functions do with the handler of a completion token.
#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <type_traits>
#include <utility>

#include <boost/asio/associated_executor.hpp>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/executor_work_guard.hpp>

namespace safering {

/// A handler of Boost.Asio's that takes (std::exception_ptr, Value), as a function for any thread: the handler runs on
/// the executor that it is associated with, else on `otherwise`, whose context has work until then. Call it once.
/// Throws std::bad_alloc, and leaves the handler alone then.
template <typename Value, typename Handler, typename Executor>
std::move_only_function<void(std::exception_ptr, Value)> dispatched(Handler&& handler,
                                                                    const Executor& otherwise) {
    auto executor = boost::asio::get_associated_executor(handler, otherwise);
    struct Held {
        std::decay_t<Handler> handler;
        decltype(executor) on;
        decltype(boost::asio::make_work_guard(executor)) work;
    };
    // The handler moves into memory that is there: a promise that were dropped for want of it would want some to tell
    // its future, and end the process.
    std::unique_ptr<Held> held(
        new Held{std::forward<Handler>(handler), executor, boost::asio::make_work_guard(executor)});
    return [held = std::move(held)](std::exception_ptr error, Value value) mutable {
        // Not post(), as this is outside of locks and jobs already: a future's would go through threads of Boost.Asio's,
        // which a forked child of this process does not have.
        boost::asio::dispatch(held->on, [handler = std::move(held->handler), error,
                                         value = std::move(value)]() mutable {
            std::move(handler)(error, std::move(value));
        });
    };
}

} // namespace safering
