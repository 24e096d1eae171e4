// The invariants: the ring is touched by one thread only (SINGLE_ISSUER); in flight never exceeds
// either queue; an entry is copied out before its slot is given back to the kernel.
//
// Buffered transfers stay off the ring: io_uring serialises buffered writes per inode on workers of
// its own (measured: 0.37 GiB/s), and buffered reads that miss the page cache block in submission.
#include "io/uring_backend.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <mutex>
#include <system_error>

#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/system/system_error.hpp>
#include <sys/eventfd.h>
#include <unistd.h>

#include <safering/handler_memory.hpp>

#include "io/blocking_pool.hpp"
#include "io/file_system.hpp"
#include "io/posix_ops.hpp"

namespace safering {

namespace {

// The eventfd through which the kernel wakes the io_context. Its handler may come after the backend
// is gone, on another thread than the one that destroys it: hence shared, locked, closable.
class Doorbell : public std::enable_shared_from_this<Doorbell> {
  public:
    /// Throws where the context grants no more descriptors, or the system none.
    explicit Doorbell(boost::asio::io_context& context) : descriptor_(context) {
        const int file = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (file < 0)
            throw std::system_error(posix::last_error(), "eventfd");
        try {
            descriptor_.assign(file);
        } catch (...) {
            ::close(file);
            throw;
        }
    }

    int file() { return descriptor_.native_handle(); }

    /// Waits for the next ring, unless it does already.
    void listen(const Backend::Wake& wake) {
        const std::lock_guard lock(mutex_);
        if (listening_ || closed_)
            return;
        listening_ = true;
        const auto rung = [self = shared_from_this(), wake](const boost::system::error_code&) {
            const std::lock_guard handler_lock(self->mutex_);
            if (self->closed_)
                return;
            self->listening_ = false;
            std::uint64_t rings = 0;
            // Non-blocking; the completion queue says what the count does not.
            [[maybe_unused]] const ssize_t got = ::read(self->file(), &rings, sizeof rings);
            wake();
        };
        descriptor_.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                               in_memory(memory_, rung));
    }
    void close() {
        const std::lock_guard lock(mutex_);
        closed_ = true;
        boost::system::error_code ignored; // close() of an eventfd has nothing to lose
        descriptor_.close(ignored);
    }

  private:
    std::mutex mutex_;
    bool listening_ = false;
    bool closed_ = false;
    HandlerMemory memory_; // of the wait
    boost::asio::posix::stream_descriptor descriptor_;
};

class UringBackend final : public Backend {
  public:
    UringBackend(const ReactorOptions& options, std::unique_ptr<Ring> ring,
                 std::shared_ptr<Doorbell> doorbell)
        : ring_(std::move(ring)), doorbell_(std::move(doorbell)), pool_(options.threads) {}
    ~UringBackend() override {
        SAFERING_ASSERT(in_ring_ == 0);
        doorbell_->close();
    }

    void begin(Wake wake) override;
    void start(Operation& operation) override;
    void flush() override;
    void reap(OperationQueue& ended) override;

    unsigned capacity() const override {
        return std::min(ring_->ring.sq.ring_entries, ring_->ring.cq.ring_entries);
    }
    BackendKind kind() const override { return BackendKind::io_uring; }
    const std::string& reason() const override { return ring_->mode; }
    std::uint64_t resume_alignment(int file) const override {
        return posix::is_direct(file) ? posix::direct_offset_alignment(file) : 1;
    }
    void close(int file) override { posix::close(file); }
    Result<FileSystemInfo> file_system(const std::string& directory) override {
        return file_systems_.at(directory);
    }

  private:
    io_uring* ring() { return &ring_->ring; }
    void submit();
    void enqueue(Operation& operation);

    std::unique_ptr<Ring> ring_;
    std::shared_ptr<Doorbell> doorbell_;
    unsigned in_ring_ = 0;
    Wake wake_;
    FileSystems file_systems_;
    BlockingPool pool_;
};

bool belongs_in_ring(const Request& request) {
    switch (request.op) {
    case Opcode::fsync:
    case Opcode::allocate: return true;
    case Opcode::read:
    case Opcode::write: return posix::is_direct(request.file);
    default: return false;
    }
}

void UringBackend::begin(Wake wake) {
    wake_ = std::move(wake);
    pool_.begin(wake_);
    if (ring_->deferred)
        ring_->enable();
}

void UringBackend::enqueue(Operation& operation) {
    // There is one, even where the kernel has not taken the earlier ones yet: no more operations
    // are in flight than the queue has entries.
    io_uring_sqe* entry = io_uring_get_sqe(ring());
    SAFERING_ASSERT(entry != nullptr);
    const int file = operation.request.file;
    const auto length = static_cast<unsigned>(operation.length);
    switch (operation.request.op) {
    case Opcode::read:
        io_uring_prep_read(entry, file, operation.data, length, operation.offset);
        break;
    case Opcode::write:
        io_uring_prep_write(entry, file, operation.data, length, operation.offset);
        break;
    case Opcode::fsync: io_uring_prep_fsync(entry, file, 0); break;
    default:
        io_uring_prep_fallocate(entry, file, 0, static_cast<off_t>(operation.offset),
                                static_cast<off_t>(operation.length));
        break;
    }
    // After prep_*, and always: liburing leaves the entry's previous user_data in place.
    io_uring_sqe_set_data(entry, &operation);
    ++in_ring_;
}

void UringBackend::start(Operation& operation) {
    if (belongs_in_ring(operation.request))
        enqueue(operation);
    else
        pool_.start(operation);
}

void UringBackend::submit() {
    while (io_uring_sq_ready(ring()) > 0) {
        const int result = io_uring_submit(ring());
        if (result > 0 || result == -EINTR)
            continue;
        // The kernel is short of memory for now; the entries stay queued until the next flush.
        SAFERING_ASSERT(result == 0 || result == -EAGAIN || result == -EBUSY || result == -ENOMEM);
        wake_();
        return;
    }
}

void UringBackend::flush() {
    submit();
    pool_.flush();
    if (in_ring_ > 0)
        doorbell_->listen(wake_);
}

void UringBackend::reap(OperationQueue& ended) {
    pool_.reap(ended);
    // With DEFER_TASKRUN the eventfd rings before the completion is in its queue; this puts it in. Also with nothing in
    // flight: the kernel may have more to do for an operation that has ended (its worker let go of it later than we
    // did), and rings for that too, and then for nothing else before somebody has looked.
    io_uring_get_events(ring());
    std::array<io_uring_cqe*, 64> batch;
    while (const unsigned count = io_uring_peek_batch_cqe(ring(), batch.data(), batch.size())) {
        for (unsigned i = 0; i < count; ++i) {
            auto* operation = static_cast<Operation*>(io_uring_cqe_get_data(batch[i]));
            operation->completion = posix::completion_of(batch[i]->res);
            const bool unsupported =
                operation->request.op == Opcode::allocate &&
                operation->completion.error == std::errc::operation_not_supported;
            if (unsupported)
                pool_.start(*operation); // which sets the size without a reservation
            else
                ended.push_back(*operation);
        }
        io_uring_cq_advance(ring(), count);
        in_ring_ -= count;
    }
    SAFERING_ASSERT(*ring()->cq.koverflow == 0);
}

} // namespace

Result<std::unique_ptr<Backend>> make_uring_backend(const ReactorOptions& options,
                                                    boost::asio::io_context& context,
                                                    const RingSetup& setup) {
    Result<std::unique_ptr<Ring>> ring = Ring::create(options.queue_depth, setup);
    if (!ring)
        return std::unexpected(std::move(ring.error()));
    try {
        auto doorbell = std::make_shared<Doorbell>(context);
        if (const int result = io_uring_register_eventfd(&(*ring)->ring, doorbell->file());
            result < 0)
            return fail(Errc::io_backend_unavailable, "set up io_uring",
                        "io_uring_register(EVENTFD): " + posix::error_of(result).message());
        return std::make_unique<UringBackend>(options, std::move(*ring), std::move(doorbell));
    } catch (const std::system_error& error) { // no descriptor, or no thread
        return fail(Errc::io_backend_unavailable, "set up io_uring", error.what());
    } catch (const boost::system::system_error& error) { // Asio's
        return fail(Errc::io_backend_unavailable, "set up io_uring", error.what());
    }
}

} // namespace safering
