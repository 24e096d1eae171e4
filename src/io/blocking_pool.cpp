#include "io/blocking_pool.hpp"

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
    const BlockedSignals blocked;
    threads_.reserve(threads);
    try {
        for (unsigned i = 0; i < threads; ++i)
            threads_.emplace_back([this] { work(); });
    } catch (...) { // those that are there would wait for ever
        stop();
        throw;
    }
}

void BlockingPool::stop() {
    {
        const std::lock_guard lock(mutex_);
        over_ = true;
    }
    changed_.notify_all();
    threads_.clear();
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
    const bool one = tasks.size() + (group.empty() ? 0 : 1) == 1;
    {
        const std::lock_guard lock(mutex_);
        tasks_.append(tasks);
        tasks_.append(group);
    }
    if (one)
        changed_.notify_one();
    else
        changed_.notify_all();
}

void BlockingPool::work() {
    std::unique_lock lock(mutex_);
    for (;;) {
        changed_.wait(lock, [this] { return over_ || !tasks_.empty(); });
        if (tasks_.empty())
            return;
        OperationQueue task, ended;
        do
            task.push_back(tasks_.pop_front());
        while (task.back().joined);
        lock.unlock();
        while (!task.empty()) {
            Operation& operation = task.pop_front();
            posix::perform(operation);
            ended.push_back(operation);
        }
        lock.lock();
        ended_.append(ended);
        lock.unlock();
        wake_();
        lock.lock();
    }
}

void BlockingPool::reap(OperationQueue& ended) {
    const std::lock_guard lock(mutex_);
    ended.append(ended_);
}

} // namespace safering
