#include "io/staging_pool.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <thread>

#include <sys/mman.h>

#include <safering/byte_range.hpp>

#include "io/huge_memory.hpp"
#include "io/on_threads.hpp"
#include "large_memory.hpp"

namespace safering::io {

namespace {

// A segment of more than twice what is wanted stays for whoever wants it, unless both are small.
constexpr std::size_t small_segment = std::size_t{64} << 20;

bool fits(std::size_t segment, std::size_t wanted) {
    return segment >= wanted && (segment <= small_segment || segment / 2 <= wanted);
}

bool populate(std::byte* memory, std::size_t bytes) {
    if (::madvise(memory, bytes, MADV_POPULATE_WRITE) == 0)
        return true;
    if (errno != EINVAL) // there is no memory; touching it would end in a signal
        return false;
    for (std::size_t at = 0; at < bytes; at += 4096)
        *const_cast<volatile std::byte*>(memory + at) = std::byte{0};
    return true;
}

// Zeroing a huge page keeps one core busy; so many as fill a memory controller share the work.
bool populate_together(std::byte* memory, std::size_t bytes) {
    constexpr std::size_t part = 16 * huge_page_bytes;
    std::atomic<std::size_t> next = 0;
    std::atomic<bool> good = true;
    on_threads(std::clamp<std::size_t>(
                   std::min<std::size_t>(std::thread::hardware_concurrency(), bytes / part), 1, 4),
               [&] {
                   for (std::size_t at = next.fetch_add(part); at < bytes && good;
                        at = next.fetch_add(part))
                       if (!populate(memory + at, std::min(part, bytes - at)))
                           good = false;
               });
    return good;
}

} // namespace

StagingPool& StagingPool::of_process() {
    static auto* const pool = new StagingPool;
    return *pool;
}

Result<StagingPool::Segments> StagingPool::make(std::size_t bytes) const {
    const std::size_t whole = round_up(bytes, huge_page_bytes);
    auto memory = allocate_huge(whole);
    if (!memory)
        return std::unexpected(std::move(memory.error()));
    std::shared_ptr<const Hooks> hooks;
    {
        const std::lock_guard lock(mutex_);
        hooks = hooks_;
    }
    Segments made;
    made.push_back({std::move(*memory), whole, std::move(hooks)});
    const Segment& segment = made.front();
    if (segment.hooks->made)
        segment.hooks->made(segment.memory.get(), whole);
    return made;
}

Result<std::shared_ptr<std::byte>> StagingPool::take(std::size_t bytes) {
    if (bytes == 0)
        return std::shared_ptr<std::byte>();
    std::unique_lock lock(mutex_);
    auto best = segments_.end();
    for (auto segment = segments_.begin(); segment != segments_.end(); ++segment)
        if (!segment->lent && fits(segment->bytes, bytes) &&
            (best == segments_.end() || segment->bytes < best->bytes))
            best = segment;
    if (best == segments_.end()) {
        lock.unlock();
        auto made = make(bytes);
        if (!made)
            return std::unexpected(std::move(made.error()));
        lock.lock();
        best = made->begin();
        segments_.splice(segments_.end(), *made);
    }
    best->lent = true;
    most_lent_ =
        std::max<std::size_t>(most_lent_, std::ranges::count(segments_, true, &Segment::lent));
    lock.unlock(); // where there is no memory to lend it with, it is given back at once
    return std::shared_ptr<std::byte>(best->memory.get(),
                                      [this, best](std::byte*) { give_back(best); });
}

// The smallest go first where more wait than were ever in use at a time.
void StagingPool::give_back(Segments::iterator segment) {
    Segments gone;
    {
        const std::lock_guard lock(mutex_);
        segment->lent = false;
        while (segments_.size() > std::max<std::size_t>(most_lent_, 1)) {
            auto least = segments_.end();
            for (auto one = segments_.begin(); one != segments_.end(); ++one)
                if (!one->lent && (least == segments_.end() || one->bytes < least->bytes))
                    least = one;
            if (least == segments_.end())
                break;
            gone.splice(gone.end(), segments_, least);
        }
    }
    free(std::move(gone));
}

void StagingPool::free(Segments segments) {
    for (const Segment& segment : segments)
        if (segment.hooks->going)
            segment.hooks->going(segment.memory.get(), segment.bytes);
}

Result<void> StagingPool::reserve(std::size_t bytes) {
    {
        const std::lock_guard lock(mutex_);
        if (bytes == 0 || std::ranges::any_of(segments_, [&](const Segment& segment) {
                return !segment.lent && fits(segment.bytes, bytes);
            }))
            return {};
    }
    auto made = make(bytes);
    if (!made)
        return std::unexpected(std::move(made.error()));
    if (!populate_together(made->front().memory.get(), made->front().bytes)) {
        free(std::move(*made));
        return fail(std::make_error_code(std::errc::not_enough_memory), "reserve staging memory",
                    std::to_string(bytes) + " bytes; reserve less");
    }
    const std::lock_guard lock(mutex_);
    segments_.splice(segments_.end(), *made);
    most_lent_ = std::max(most_lent_, segments_.size());
    return {};
}

bool StagingPool::holds(const std::byte* data, std::size_t bytes) const {
    const std::lock_guard lock(mutex_);
    return std::ranges::any_of(segments_, [&](const Segment& segment) {
        const std::byte* begin = segment.memory.get();
        return begin <= data && data <= begin + segment.bytes &&
               bytes <= static_cast<std::size_t>(begin + segment.bytes - data);
    });
}

void StagingPool::release() {
    Segments gone;
    {
        const std::lock_guard lock(mutex_);
        for (auto segment = segments_.begin(); segment != segments_.end();) {
            const auto next = std::next(segment);
            if (!segment->lent)
                gone.splice(gone.end(), segments_, segment);
            segment = next;
        }
        most_lent_ = segments_.size();
    }
    free(std::move(gone));
}

void StagingPool::set_hooks(Hooks hooks) {
    auto shared = std::make_shared<const Hooks>(std::move(hooks));
    const std::lock_guard lock(mutex_);
    hooks_ = std::move(shared);
}

std::size_t StagingPool::bytes() const {
    const std::lock_guard lock(mutex_);
    std::size_t bytes = 0;
    for (const Segment& segment : segments_)
        bytes += segment.bytes;
    return bytes;
}

} // namespace safering::io
