#include "io/blocking_pool.hpp"

#include <boost/asio/post.hpp>

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

BlockingPool::BlockingPool(unsigned threads)
    : tasks_(static_cast<int>(threads)), work_(tasks_.get_executor()) {
    const BlockedSignals blocked;
    threads_.reserve(threads);
    for (unsigned i = 0; i < threads; ++i)
        threads_.emplace_back([this] { tasks_.run(); });
}

void BlockingPool::start(Operation& operation) {
    started_.push_back(&operation);
}

void BlockingPool::flush() {
    std::vector<Operation*> group;
    for (Operation* operation : started_) {
        if (is_small_buffered_write(*operation))
            group.push_back(operation);
        else
            post({operation});
    }
    if (!group.empty())
        post(std::move(group));
    started_.clear();
}

void BlockingPool::post(std::vector<Operation*> group) {
    boost::asio::post(tasks_, [this, group = std::move(group)] {
        for (Operation* operation : group)
            posix::perform(*operation);
        {
            const std::lock_guard lock(mutex_);
            ended_.insert(ended_.end(), group.begin(), group.end());
        }
        wake_();
    });
}

void BlockingPool::reap(std::vector<Operation*>& ended) {
    const std::lock_guard lock(mutex_);
    ended.insert(ended.end(), ended_.begin(), ended_.end());
    ended_.clear();
}

} // namespace safering
