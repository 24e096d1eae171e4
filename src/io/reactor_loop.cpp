#include "io/reactor_loop.hpp"

#include <algorithm>
#include <memory>
#include <new>
#include <utility>

#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>

#include "io/trace.hpp"
#include "io/transfer.hpp"

namespace safering {

namespace {

// Handlers between two looks at the backend: few enough that the disk does not wait for them, many
// enough that looking costs nothing.
constexpr std::size_t handlers_per_turn = 64;

template <typename Function>
class ScopeExit {
  public:
    explicit ScopeExit(Function function) : function_(std::move(function)) {}
    ScopeExit(const ScopeExit&) = delete;
    ScopeExit& operator=(const ScopeExit&) = delete;
    ~ScopeExit() { function_(); }

  private:
    Function function_;
};

} // namespace

ReactorLoop::ReactorLoop(Executor executor, std::unique_ptr<Backend> backend, unsigned depth)
    : executor_(std::move(executor)), depth_(std::min(depth, backend->capacity())),
      backend_(std::move(backend)) {}

namespace {

// Memory for a batch that nobody has taken yet.
struct Reserved {
    explicit Reserved(std::size_t count) {
        try {
            while (operations.size() < count)
                operations.push_back(*new Operation{.owned = true});
        } catch (...) {
            release();
            throw;
        }
    }
    ~Reserved() { release(); }
    void release() {
        while (!operations.empty())
            delete &operations.pop_front();
    }

    OperationQueue operations;
};

} // namespace

void ReactorLoop::submit(std::span<Reactor::Submission> batch) {
    if (batch.empty())
        return;
    Reserved reserved(batch.size());
    OperationQueue operations;
    for (Reactor::Submission& submission : batch) {
        SAFERING_ASSERT(submission.request.minimum <= submission.request.length);
        Operation& operation = reserved.operations.pop_front();
        operation.request = std::move(submission.request);
        operation.on_complete = std::move(submission.on_complete);
        operations.push_back(operation);
    }
    enqueue(operations);
}

void ReactorLoop::wait(std::span<Operation> operations) {
    struct Waiting {
        std::mutex mutex;
        std::condition_variable ended;
        std::size_t left;
    } waiting{.mutex = {}, .ended = {}, .left = operations.size()};
    OperationQueue queue;
    for (Operation& operation : operations) {
        SAFERING_ASSERT(operation.request.minimum <= operation.request.length);
        operation.on_complete = [&waiting, &operation](Completion completion) {
            const std::lock_guard lock(waiting.mutex);
            operation.completion = std::move(completion);
            if (--waiting.left == 0)
                waiting.ended.notify_one(); // under the lock: all of it may be gone right after
        };
        queue.push_back(operation);
    }
    if (queue.empty())
        return;
    enqueue(queue);
    std::unique_lock lock(waiting.mutex);
    waiting.ended.wait(lock, [&] { return waiting.left == 0; });
}

void ReactorLoop::enqueue(OperationQueue& operations) {
    {
        const std::lock_guard lock(mutex_);
        outstanding_ += operations.size();
        while (!operations.empty()) {
            Operation& operation = operations.pop_front();
            // A close is let through: the handler of an open that ends now has nothing else to
            // do with its descriptor.
            if (refusing_ && operation.request.op != Opcode::close)
                operation.completion.error = Errc::io_stopped;
            incoming_.push_back(operation);
        }
    }
    wake();
}

void ReactorLoop::refuse_more() {
    const std::lock_guard lock(mutex_);
    refusing_ = true;
}

void ReactorLoop::wait_until_idle() {
    std::unique_lock lock(mutex_);
    became_idle_.wait(lock, [this] { return outstanding_ == 0 && turns_ == 0; });
}

void ReactorLoop::close_when_idle() {
    std::unique_ptr<Backend> backend;
    {
        std::unique_lock lock(mutex_);
        became_idle_.wait(lock, [this] { return outstanding_ == 0 && turns_ == 0; });
        backend = std::move(backend_);
    }
    // Outside the lock: its threads may be about to wake us.
    backend.reset();
}

bool ReactorLoop::idle() const {
    const std::lock_guard lock(mutex_);
    return outstanding_ == running_;
}

std::thread::id ReactorLoop::thread() const {
    const std::lock_guard lock(mutex_);
    return thread_;
}

void ReactorLoop::close() {
    std::unique_ptr<Backend> backend;
    {
        const std::lock_guard lock(mutex_);
        SAFERING_ASSERT(outstanding_ == running_);
        backend = std::move(backend_);
    }
    backend.reset(); // outside the lock, as above
}

void ReactorLoop::wake() {
    if (!awake_.exchange(true))
        boost::asio::post(executor_, in_memory(turn_memory_, [self = shared_from_this()] {
                              // Before looking: what arrives while we look must wake us again.
                              self->awake_ = false;
                              self->turn();
                          }));
}

void ReactorLoop::turn() {
    {
        const std::lock_guard lock(mutex_);
        if (backend_ == nullptr)
            return;
        SAFERING_ASSERT(thread_ == std::thread::id{} || thread_ == std::this_thread::get_id());
        thread_ = std::this_thread::get_id();
        ++turns_;
    }
    // A handler may throw: out of io_context::run(), as Asio's handlers do.
    const ScopeExit leaving([this] { leave(); });
    if (!begun_) {
        backend_->begin([this] { wake(); });
        begun_ = true;
    }
    take_incoming();
    backend_->reap(ended_);
    settle_ended();
    fill();
    if (!work_)
        work_.emplace(executor_);
    run_handlers();
}

void ReactorLoop::leave() {
    if (!finished_.empty())
        wake();
    // An embedder's io_context may run out of work when we have none.
    if (in_flight_ + paused_ + pending_.size() + finished_.size() == 0)
        work_.reset();
    const std::lock_guard lock(mutex_);
    --turns_;
    if (outstanding_ == 0)
        became_idle_.notify_all();
}

void ReactorLoop::take_incoming() {
    OperationQueue incoming;
    {
        const std::lock_guard lock(mutex_);
        incoming.append(incoming_);
    }
    while (!incoming.empty()) {
        Operation& operation = incoming.pop_front();
        if (operation.completion.error) {
            finished_.push_back(operation);
        } else {
            begin_transfer(operation);
            pending_.push_back(operation);
        }
    }
}

void ReactorLoop::settle_ended() {
    in_flight_ -= static_cast<unsigned>(ended_.size());
    while (!ended_.empty())
        settle(ended_.pop_front());
}

void ReactorLoop::settle(Operation& operation) {
    const auto alignment = [&] { return backend_->resume_alignment(operation.request.file); };
    switch (next_step(operation, alignment)) {
    case NextStep::finish:
        trace::add(operation.request, operation.completion, operation.begun_ns);
        finished_.push_back(operation);
        break;
    case NextStep::again: pending_.push_front(operation); break;
    case NextStep::later: retry_later(operation); break;
    }
}

void ReactorLoop::retry_later(Operation& operation) {
    try {
        auto timer = std::make_unique<boost::asio::steady_timer>(executor_, pause(operation));
        boost::asio::steady_timer& waiting = *timer;
        waiting.async_wait([self = shared_from_this(), timer = std::move(timer),
                            &operation](const boost::system::error_code&) {
            --self->paused_;
            self->pending_.push_front(operation);
            self->wake();
        });
        ++paused_;
    } catch (const std::bad_alloc&) {
        operation.completion.error = std::make_error_code(std::errc::not_enough_memory);
        finished_.push_back(operation);
    }
}

void ReactorLoop::fill() {
    while (in_flight_ < depth_ && !pending_.empty()) {
        Operation& operation = pending_.pop_front();
        ++in_flight_;
        if (operation.begun_ns == 0)
            operation.begun_ns = trace::now_ns();
        backend_->start(operation);
    }
    backend_->flush();
}

// A handler may destroy the Reactor (on an embedder's context), which runs turns inside
// this one until only the handlers on the stack are left: so nothing is kept here from
// one handler to the next.
void ReactorLoop::run_handlers() {
    for (std::size_t ran = 0; ran < handlers_per_turn && !finished_.empty(); ++ran) {
        Operation& operation = finished_.pop_front();
        const std::unique_ptr<Operation> owned(operation.owned ? &operation : nullptr);
        {
            const std::lock_guard lock(mutex_);
            ++running_;
        }
        const ScopeExit returned([this] {
            const std::lock_guard lock(mutex_);
            --running_;
            --outstanding_;
        });
        // A waiter's operation is gone as soon as it hears of its end.
        if (auto on_complete = std::exchange(operation.on_complete, {}))
            on_complete(std::move(operation.completion));
    }
}

} // namespace safering
