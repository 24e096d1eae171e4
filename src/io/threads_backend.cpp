#include "io/threads_backend.hpp"

#include "io/blocking_pool.hpp"
#include "io/file_system.hpp"
#include "io/posix_ops.hpp"

namespace safering {

namespace {

class ThreadsBackend final : public Backend {
  public:
    ThreadsBackend(const ReactorOptions& options, std::string reason)
        : depth_(options.queue_depth), reason_(std::move(reason)), pool_(options.threads) {}

    void begin(Wake wake) override { pool_.begin(std::move(wake)); }
    void start(Operation& operation) override { pool_.start(operation); }
    void flush() override { pool_.flush(); }
    void reap(OperationQueue& ended) override { pool_.reap(ended); }

    unsigned capacity() const override { return depth_; }
    BackendKind kind() const override { return BackendKind::threads; }
    const std::string& reason() const override { return reason_; }
    std::uint64_t resume_alignment(int file) const override {
        return posix::is_direct(file) ? posix::direct_offset_alignment(file) : 1;
    }
    void close(int file) override { posix::close(file); }
    Result<FileSystemInfo> file_system(const std::string& directory) override {
        return file_systems_.at(directory);
    }

  private:
    unsigned depth_;
    std::string reason_;
    FileSystems file_systems_;
    BlockingPool pool_;
};

} // namespace

std::unique_ptr<Backend> make_threads_backend(const ReactorOptions& options, std::string reason) {
    return std::make_unique<ThreadsBackend>(options, std::move(reason));
}

} // namespace safering
