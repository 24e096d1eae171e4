// One request on its way, and rows of them. A row links its operations through themselves, so that once a request
// has been taken nothing that happens to it needs memory: not its way through the loop, not its completion.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include <safering/reactor.hpp>

namespace safering {

/// The Reactor's, or a waiter's; a backend borrows it between start() and reap().
struct Operation {
    /// What the submitter asked for, untouched.
    Request request{};
    Reactor::Handler on_complete{};
    /// Whether it goes when its handler has been called; else it is its waiter's.
    bool owned = false;

    /// What this attempt is to do: the request, with data, length and offset of what is left of it.
    /// Only `length`, `offset` and `data` differ from the request.
    std::byte* data = nullptr;
    std::uint64_t length = 0;
    std::uint64_t offset = 0;
    /// How this attempt ended; the backend's to fill. `result` of a transfer:
    /// bytes of this attempt.
    Completion completion{};

    /// When the first attempt began, where that is traced.
    std::int64_t begun_ns = 0;
    /// Bytes moved by all attempts, and how often in a row nothing moved.
    std::uint64_t moved = 0;
    unsigned idle = 0;
    unsigned retries = 0;

    /// Of the row that it is in.
    Operation* next = nullptr;
    /// A thread that takes it takes the next as well.
    bool joined = false;
};

/// Owns nothing. An operation is in one row at most.
class OperationQueue {
  public:
    OperationQueue() = default;
    OperationQueue(const OperationQueue&) = delete;
    OperationQueue& operator=(const OperationQueue&) = delete;

    bool empty() const { return first_ == nullptr; }
    std::size_t size() const { return size_; }
    Operation& back() { return *last_; }

    void push_back(Operation& operation) {
        operation.next = nullptr;
        (first_ == nullptr ? first_ : last_->next) = &operation;
        last_ = &operation;
        ++size_;
    }
    void push_front(Operation& operation) {
        operation.next = first_;
        if (first_ == nullptr)
            last_ = &operation;
        first_ = &operation;
        ++size_;
    }
    Operation& pop_front() { return take(0); }
    /// The one at this place.
    Operation& take(std::size_t place) {
        Operation* before = nullptr;
        Operation* taken = first_;
        for (; place > 0; --place)
            before = std::exchange(taken, taken->next);
        (before == nullptr ? first_ : before->next) = taken->next;
        if (last_ == taken)
            last_ = before;
        --size_;
        return *taken;
    }
    /// Takes all of `others`.
    void append(OperationQueue& others) {
        if (others.empty())
            return;
        (first_ == nullptr ? first_ : last_->next) = std::exchange(others.first_, nullptr);
        last_ = std::exchange(others.last_, nullptr);
        size_ += std::exchange(others.size_, 0);
    }

  private:
    Operation* first_ = nullptr;
    Operation* last_ = nullptr;
    std::size_t size_ = 0;
};

} // namespace safering
