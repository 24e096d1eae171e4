#include <safering/reactor.hpp>

#include <chrono>
#include <mutex>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <thread>

#include <boost/asio/steady_timer.hpp>
#include <boost/system/system_error.hpp>
#include <unistd.h>

#include "io/blocked_signals.hpp"
#include "io/buffer_pool.hpp"
#include "io/peer_hub.hpp"
#include "io/reactor_loop.hpp"
#include "io/threads_backend.hpp"
#include "io/uring_backend.hpp"
#include "out_of_memory.hpp"

namespace safering {

struct Reactor::Impl {
    Impl(ReactorOptions wanted, std::unique_ptr<boost::asio::io_context> own,
         boost::asio::io_context& used, std::unique_ptr<Backend> backend)
        : options(wanted), own_context(std::move(own)), context(used), given(std::move(backend)),
          loop(std::make_shared<ReactorLoop>(context.get_executor(), std::move(given),
                                             options.queue_depth)) {
        // Later the backend may be gone in the eyes of another thread.
        info.backend = loop->backend().kind();
        info.reason = loop->backend().reason();
        info.queue_depth = std::min(options.queue_depth, loop->backend().capacity());
        info.buffer_bytes = options.buffer_bytes;
        info.buffer_count = options.buffer_count;
        info.transfer_bytes =
            options.transfer_bytes == 0 ? options.buffer_bytes : options.transfer_bytes;
        info.origin = options.origin;
    }

    /// Once a Reactor owns this, and joins what begins here.
    void start() {
        if (!own_context)
            return;
        work.emplace(context.get_executor());
        const BlockedSignals blocked;
        thread = std::thread([this] { context.run(); });
    }

    bool forked() const { return ::getpid() != process; }
    void wait(std::span<Operation> operations);
    void finish_on_this_thread();

    const pid_t process = ::getpid();
    const ReactorOptions options;
    std::unique_ptr<boost::asio::io_context> own_context;
    boost::asio::io_context& context;
    /// Until there is a loop that has it: it must go before the context, also where no loop could be made.
    std::unique_ptr<Backend> given;
    std::shared_ptr<ReactorLoop> loop;
    std::optional<boost::asio::executor_work_guard<boost::asio::io_context::executor_type>> work;
    std::thread thread;
    std::mutex pool_mutex;
    std::unique_ptr<BufferPool> pool;
    std::shared_ptr<PeerHub> peers; // as well under the mutex
    ReactorInfo info;
};

void Reactor::Impl::wait(std::span<Operation> operations) {
    if (!forked()) {
        SAFERING_ASSERT(!context.get_executor().running_in_this_thread());
        return loop->wait(operations);
    }
    for (Operation& operation : operations)
        operation.completion.error = Errc::io_forked;
}

// The embedder's context has stopped running, never ran, or is the one that destroys us.
void Reactor::Impl::finish_on_this_thread() {
    // Inside one of the context's handlers, what that handler's turn has posted may not be run
    // before it returns: the turns are taken by hand. The context still delivers the ring's
    // wake-ups and the timers; a millisecond bounds the wait for the rest.
    const bool nested = context.get_executor().running_in_this_thread();
    while (!loop->idle()) {
        // run_one() stops a context that runs out of work, and a stopped one runs nothing.
        if (context.stopped())
            context.restart();
        if (!nested) {
            context.run_one();
            continue;
        }
        loop->turn();
        if (!loop->idle())
            context.run_one_for(std::chrono::milliseconds(1));
    }
}

std::string_view name(BackendKind kind) {
    switch (kind) {
    case BackendKind::io_uring: return "io_uring";
    case BackendKind::threads: return "threads";
    case BackendKind::simulated: return "simulated";
    }
    return "unknown";
}

std::unique_ptr<Reactor> make_reactor(std::unique_ptr<Backend> backend, ReactorOptions options,
                                      std::unique_ptr<boost::asio::io_context> own_context,
                                      boost::asio::io_context& context) {
    auto impl = std::make_unique<Reactor::Impl>(options, std::move(own_context), context,
                                                std::move(backend));
    Reactor::Impl& made = *impl;
    auto reactor = std::make_unique<Reactor>(std::move(impl));
    made.start();
    return reactor;
}

namespace {

Result<std::unique_ptr<Backend>> make_backend(const ReactorOptions& options,
                                              boost::asio::io_context& context) {
    if (options.backend == BackendChoice::threads)
        return make_threads_backend(options, "asked for");
    Result<std::unique_ptr<Backend>> ring = make_uring_backend(options, context);
    if (ring || options.backend == BackendChoice::io_uring)
        return ring;
    return make_threads_backend(options, ring.error().detail);
}

std::unexpected<Error> not_created(std::error_code code, std::string detail) {
    return fail(code, "create reactor", std::move(detail));
}

Result<void> check(const ReactorOptions& options) {
    const auto refused = [](const std::string& detail) {
        return not_created(std::make_error_code(std::errc::invalid_argument), detail);
    };
    if (options.queue_depth == 0)
        return refused("queue_depth is 0; nothing could be in flight");
    if (options.threads == 0)
        return refused("threads is 0; io_uring needs one as well, for what is not direct");
    if (options.buffer_count == 0)
        return refused("buffer_count is 0; a save or a load needs one buffer at least");
    if (options.buffer_bytes == 0 || options.buffer_bytes % 4096 != 0)
        return refused("buffer_bytes is " + std::to_string(options.buffer_bytes) +
                       "; expected a multiple of 4096, the block of direct transfers");
    if (options.transfer_bytes % 4096 != 0)
        return refused("transfer_bytes is " + std::to_string(options.transfer_bytes) +
                       "; expected a multiple of 4096, or 0 for as long as a buffer");
    return {};
}

// `own`: `context`, where the reactor is to run it itself.
Result<std::unique_ptr<Reactor>> create_on(boost::asio::io_context& context,
                                           std::unique_ptr<boost::asio::io_context> own,
                                           const ReactorOptions& options) {
    try {
        // Opens what the context needs for timers now: where there is no descriptor left for it,
        // the first pause before a retry would find out.
        static_cast<void>(boost::asio::steady_timer(context));
        Result<std::unique_ptr<Backend>> backend = make_backend(options, context);
        if (!backend)
            return std::unexpected(std::move(backend.error()));
        return make_reactor(std::move(*backend), options, std::move(own), context);
    } catch (const std::system_error& error) { // of std::thread
        return not_created(error.code(), "no thread could be started; see the limit of processes "
                                         "(ulimit -u) and that of the container (pids.max)");
    } catch (const boost::system::system_error& error) { // Asio's, with an errno as well
        return not_created({error.code().value(), std::system_category()}, error.what());
    }
}

} // namespace

Result<std::unique_ptr<Reactor>> Reactor::create(ReactorOptions options) {
    if (auto good = check(options); !good)
        return std::unexpected(std::move(good.error()));
    return or_out_of_memory([&] {
        // One thread runs it: the context needs no locks of its own beyond those for post().
        auto context = std::make_unique<boost::asio::io_context>(1);
        boost::asio::io_context& used = *context;
        return create_on(used, std::move(context), options);
    });
}

Result<std::unique_ptr<Reactor>> Reactor::create(boost::asio::io_context& context,
                                                 ReactorOptions options) {
    if (auto good = check(options); !good)
        return std::unexpected(std::move(good.error()));
    return or_out_of_memory([&] { return create_on(context, nullptr, options); });
}

Reactor::Reactor(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Reactor::~Reactor() {
    if (impl_->forked()) {
        // The threads, and perhaps the locks that they held, stayed with the parent.
        static_cast<void>(impl_.release());
        return;
    }
    ReactorLoop& loop = *impl_->loop;
    loop.refuse_more();
    if (impl_->own_context) {
        SAFERING_ASSERT(!running_in_this_thread());
        loop.wait_until_idle();
        // Not stop(): completion handlers that were posted to this executor still run.
        impl_->work.reset();
        if (impl_->thread.joinable()) // not where there was none to be had
            impl_->thread.join();
        loop.close();
    } else if (const std::thread::id thread = loop.thread();
               thread == std::thread::id{} || thread == std::this_thread::get_id()) {
        impl_->finish_on_this_thread();
        loop.close();
    } else {
        loop.close_when_idle();
    }
}

void Reactor::submit(std::span<Submission> batch) {
    if (!impl_->forked())
        return impl_->loop->submit(batch);
    // No thread is left in this process that could run the handlers.
    for (Submission& submission : batch)
        if (submission.on_complete)
            submission.on_complete(Completion{.error = Errc::io_forked});
}

void Reactor::submit(Request request, Handler on_complete) {
    Submission submission{std::move(request), std::move(on_complete)};
    submit(std::span(&submission, 1));
}

Completion Reactor::wait(Request request) {
    Operation operation{.request = std::move(request)};
    impl_->wait(std::span(&operation, 1));
    return std::move(operation.completion);
}

std::vector<Completion> Reactor::wait_all(std::vector<Request> requests) {
    std::vector<Operation> operations(requests.size());
    std::vector<Completion> completions(requests.size());
    for (std::size_t i = 0; i < requests.size(); ++i)
        operations[i].request = std::move(requests[i]);
    impl_->wait(operations);
    for (std::size_t i = 0; i < requests.size(); ++i)
        completions[i] = std::move(operations[i].completion);
    return completions;
}

void Reactor::close(int file) {
    Request request{.op = Opcode::close, .file = file};
    if (impl_->forked() || (has_own_thread() && !running_in_this_thread())) {
        static_cast<void>(wait(std::move(request)));
        return;
    }
    try {
        submit(std::move(request), {});
    } catch (const std::bad_alloc&) {
        impl_->loop->backend().close(file);
    }
}

boost::asio::io_context::executor_type Reactor::executor() const {
    return impl_->context.get_executor();
}

bool Reactor::running_in_this_thread() const {
    return impl_->context.get_executor().running_in_this_thread();
}

bool Reactor::has_own_thread() const {
    return impl_->own_context != nullptr;
}

ReactorInfo Reactor::info() const {
    ReactorInfo info = impl_->info;
    const std::lock_guard lock(impl_->pool_mutex);
    info.huge_pages = impl_->pool != nullptr && impl_->pool->huge_pages();
    return info;
}

Result<FileSystemInfo> Reactor::file_system(const std::string& directory) {
    if (impl_->forked())
        return fail(Errc::io_forked, "examine file system");
    return or_out_of_memory([&] { return impl_->loop->backend().file_system(directory); });
}

BufferPool& Reactor::buffers() {
    // The pool's memory is not mapped in a child.
    if (impl_->forked())
        throw Exception(fail(Errc::io_forked, "use buffers").error());
    const std::lock_guard lock(impl_->pool_mutex);
    if (impl_->pool == nullptr)
        impl_->pool = value_or_throw(
            BufferPool::create(impl_->options.buffer_bytes, impl_->options.buffer_count));
    return *impl_->pool;
}

Result<PeerHub*> Reactor::peers() {
    if (impl_->forked())
        return fail(Errc::io_forked, "listen for ranks of this host");
    const std::lock_guard lock(impl_->pool_mutex);
    if (impl_->peers == nullptr) {
        auto created = or_out_of_memory([&] { return PeerHub::create(executor()); });
        if (!created)
            return std::unexpected(std::move(created.error()));
        impl_->peers = std::move(*created);
    }
    return impl_->peers.get();
}

std::string Reactor::endpoint() {
    const auto hub = peers();
    return hub ? (*hub)->endpoint() : std::string();
}

} // namespace safering
