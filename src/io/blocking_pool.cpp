#include "io/blocking_pool.hpp"

#include <cerrno>
#include <system_error>

#include <safering/error.hpp>

#include "io/blocked_signals.hpp"
#include "io/posix_ops.hpp"

namespace safering {

namespace {

// A write of up to 64 KiB into the page cache takes less time than waking a thread and being woken
// by it, so such writes share one task, in order. Larger ones are worth a task each.
constexpr std::uint64_t small_bytes = 64 << 10;

bool is_small_buffered_write(const Operation& operation) {
    return operation.request.op == Opcode::write && operation.length <= small_bytes &&
           !posix::is_direct(operation.request.file);
}

} // namespace

BlockingPool::BlockingPool(unsigned threads) {
    if (::sem_init(&ready_, 0, 0) != 0)
        throw std::system_error(posix::last_error(), "sem_init");
    try {
        const BlockedSignals blocked;
        threads_.reserve(threads);
        for (unsigned i = 0; i < threads; ++i)
            threads_.emplace_back([this] { work(); });
    } catch (...) { // those that are there would wait for ever
        stop();
        throw;
    }
}

BlockingPool::~BlockingPool() {
    stop();
}

void BlockingPool::stop() {
    wake_threads(threads_.size()); // to find nothing
    threads_.clear();
    ::sem_destroy(&ready_);
}

void BlockingPool::wake_threads(std::size_t count) {
    while (count-- > 0)
        SAFERING_ASSERT(::sem_post(&ready_) == 0);
}

void BlockingPool::flush() {
    OperationQueue tasks, group;
    while (!started_.empty()) {
        Operation& operation = started_.pop_front();
        operation.joined = false;
        if (!is_small_buffered_write(operation)) {
            tasks.push_back(operation);
            continue;
        }
        if (!group.empty())
            group.back().joined = true;
        group.push_back(operation);
    }
    if (tasks.empty() && group.empty())
        return;
    const std::size_t count = tasks.size() + (group.empty() ? 0 : 1);
    {
        const std::lock_guard lock(mutex_);
        tasks_.append(tasks);
        tasks_.append(group);
    }
    wake_threads(count);
}

void BlockingPool::work() {
    for (;;) {
        while (::sem_wait(&ready_) != 0)
            SAFERING_ASSERT(errno == EINTR);
        OperationQueue task, ended;
        {
            const std::lock_guard lock(mutex_);
            if (tasks_.empty())
                return;
            do
                task.push_back(tasks_.pop_front());
            while (task.back().joined);
        }
        while (!task.empty()) {
            Operation& operation = task.pop_front();
            posix::perform(operation);
            ended.push_back(operation);
        }
        {
            const std::lock_guard lock(mutex_);
            ended_.append(ended);
        }
        wake_();
    }
}

void BlockingPool::reap(OperationQueue& ended) {
    const std::lock_guard lock(mutex_);
    ended.append(ended_);
}

} // namespace safering
