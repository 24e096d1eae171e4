// What the asynchronous functions do with the handler of a completion token.
#pragma once

#include <exception>
#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>

#include <boost/asio/associated_executor.hpp>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/executor_work_guard.hpp>

#include <safering/handler_memory.hpp>

namespace safering {

/// A handler of Boost.Asio's as a function for any thread: it runs on the executor that it is associated with, else on
/// `otherwise`, whose context has work until then. It is called once, and that needs no memory, but where the executor is
/// an any_io_executor, as coroutines have.
template <typename Handler, typename Executor, typename... Values>
class Dispatched {
  public:
    /// Throws std::bad_alloc, and leaves the handler alone then. It moves into memory that is there: a promise that were
    /// dropped for want of it would want some to tell its future, and end the process.
    template <typename From>
    Dispatched(From&& handler, const Executor& executor)
        : held_(new Held{std::forward<From>(handler), executor,
                         boost::asio::make_work_guard(executor)}) {}

    void operator()(Values... values) {
        Held& ending = *held_;
        ending.values = {std::move(values)...};
        const Executor executor = ending.executor;
        // Until dispatch() has returned: when the handler has ended, its context may be waited for and destroyed.
        const auto work = std::move(ending.work);
        // Not post(), as this is outside of locks and jobs already: a future's would go through threads of Boost.Asio's,
        // which a forked child of this process does not have.
        boost::asio::dispatch(
            executor, in_memory(ending.memory, [held = std::move(held_)] { held->call(); }));
    }
    /// Calls the handler here.
    void at_once(Values... values) {
        held_->values = {std::move(values)...};
        held_->call();
    }
    struct Held {
        Handler handler;
        Executor executor;
        decltype(boost::asio::make_work_guard(std::declval<const Executor&>())) work;
        std::tuple<Values...> values{};
        HandlerMemory memory{};

        void call() {
            std::apply([this](Values&... given) { std::move(handler)(std::move(given)...); },
                       values);
        }
        /// `to` is again what it was before.
        void give_back(Handler& to) {
            std::destroy_at(&to);
            std::construct_at(&to, std::move(handler));
        }
    };
    Held& held() { return *held_; }

  private:
    std::unique_ptr<Held> held_;
};

template <typename... Values, typename Handler, typename Executor>
auto dispatched(Handler&& handler, const Executor& otherwise) {
    auto executor = boost::asio::get_associated_executor(handler, otherwise);
    return Dispatched<std::decay_t<Handler>, decltype(executor), Values...>(
        std::forward<Handler>(handler), executor);
}

} // namespace safering
