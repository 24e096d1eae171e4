// How an asynchronous save or load ends: outside of the call that began it and of the job that did it.
#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <utility>

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>

#include <safering/error.hpp>
#include <safering/handler_memory.hpp>

#include "checkpoint/caught.hpp"

namespace safering::checkpoint {

/// Made before anything begins, so that the end can be told when there is no memory left.
template <typename Value>
class Delivery {
  public:
    using Executor = boost::asio::io_context::executor_type;
    using Handler = std::move_only_function<void(std::exception_ptr, Value)>;

    Delivery(Executor executor, Handler handler)
        : executor_(std::move(executor)), handler_(std::move(handler)) {}

    /// Nothing where there is no memory for one; `handler` has heard of that then, at once.
    static std::unique_ptr<Delivery> make(Executor executor, Handler& handler) {
        try {
            // The handler moves once there is a place for it.
            return std::unique_ptr<Delivery>(new Delivery(std::move(executor), std::move(handler)));
        } catch (const std::bad_alloc&) {
            handler(std::make_exception_ptr(std::bad_alloc()), {});
            return nullptr;
        }
    }

    /// Calls the handler on the reactor's executor; at once where this is a forked child of the reactor's
    /// process, in which nobody runs that executor.
    static void end(std::unique_ptr<Delivery> delivery, Result<Value> result) {
        const bool forked = !result && result.error().code == Errc::io_forked;
        Delivery& ending = *delivery;
        ending.result_ = std::move(result);
        if (forked)
            return ending.call();
        post(std::move(delivery));
    }
    /// The same with what was thrown.
    static void end(std::unique_ptr<Delivery> delivery, std::exception_ptr thrown) {
        delivery->thrown_ = std::move(thrown);
        post(std::move(delivery));
    }
    Handler& handler() { return handler_; }

  private:
    static void post(std::unique_ptr<Delivery> delivery) {
        Delivery& ending = *delivery;
        boost::asio::post(
            ending.executor_,
            in_memory(ending.memory_, [delivery = std::move(delivery)] { delivery->call(); }));
    }
    void call() {
        if (thrown_)
            handler_(std::move(thrown_), {});
        else if (result_)
            handler_(nullptr, std::move(*result_));
        else
            handler_(exception_of(std::move(result_.error())), {});
    }

    Executor executor_;
    Handler handler_;
    Result<Value> result_{};
    std::exception_ptr thrown_;
    HandlerMemory memory_;
};

} // namespace safering::checkpoint
