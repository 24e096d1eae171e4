// Ranks that are threads of one process: what an AsyncSaver of theirs speaks through.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include <safering/async_saver.hpp>

namespace safering::test {

using Bytes = std::vector<std::byte>;

// Letters to each rank.
class Meeting {
  public:
    explicit Meeting(std::uint32_t ranks) : boxes_(ranks) {}

    void put(std::uint32_t to, Bytes bytes) {
        const std::lock_guard lock(mutex_);
        boxes_[to].push_back(std::move(bytes));
        changed_.notify_all();
    }
    Bytes take(std::uint32_t of) {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return !boxes_[of].empty(); });
        Bytes bytes = std::move(boxes_[of].front());
        boxes_[of].pop_front();
        return bytes;
    }

  private:
    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<std::deque<Bytes>> boxes_;
};

class ThreadRank final : public Collectives {
  public:
    ThreadRank(std::shared_ptr<Meeting> to_first, std::shared_ptr<Meeting> from_first,
               std::uint32_t rank)
        : to_first_(std::move(to_first)), from_first_(std::move(from_first)), rank_(rank) {}
    std::uint32_t rank() const override { return rank_; }
    std::uint32_t ranks() const override { return 2; }
    Result<std::vector<Bytes>> gather(Bytes own) override {
        if (rank_ != 0) {
            to_first_->put(0, std::move(own));
            return std::vector<Bytes>{};
        }
        return std::vector<Bytes>{std::move(own), to_first_->take(0)};
    }
    Result<Bytes> scatter(std::vector<Bytes> parts) override {
        if (rank_ != 0)
            return from_first_->take(rank_);
        from_first_->put(1, std::move(parts.at(1)));
        return std::move(parts.at(0));
    }

  private:
    std::shared_ptr<Meeting> to_first_;
    std::shared_ptr<Meeting> from_first_;
    std::uint32_t rank_;
};

// Both ranks' ends of one conversation.
inline std::vector<std::shared_ptr<Collectives>> make_conversation() {
    auto to_first = std::make_shared<Meeting>(2);
    auto from_first = std::make_shared<Meeting>(2);
    return {std::make_shared<ThreadRank>(to_first, from_first, 0),
            std::make_shared<ThreadRank>(to_first, from_first, 1)};
}

} // namespace safering::test
