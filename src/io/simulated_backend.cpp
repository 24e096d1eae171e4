// The Reactor's view of a SimulatedDisk: operations end when reap() asks, in the
// order the disk chooses.
#include "io/simulated_disk.hpp"

namespace safering {

namespace {

class SimulatedBackend final : public Backend {
  public:
    SimulatedBackend(std::shared_ptr<SimulatedDisk> disk, unsigned depth)
        : disk_(std::move(disk)), depth_(depth) {}
    ~SimulatedBackend() override {
        if (wake_)
            disk_->remove_wake(wake_id_);
    }

    void begin(Wake wake) override {
        wake_ = std::move(wake);
        wake_id_ = disk_->add_wake(wake_);
    }
    void start(Operation& operation) override { started_.push_back(operation); }
    void flush() override {
        if (!started_.empty() && !disk_->held())
            wake_();
    }
    // One a call, so that what was submitted meanwhile can overtake it.
    void reap(OperationQueue& ended) override {
        if (started_.empty() || disk_->held())
            return;
        Operation& operation = started_.take(disk_->choose(started_.size()));
        disk_->perform(operation);
        ended.push_back(operation);
    }

    unsigned capacity() const override { return depth_; }
    BackendKind kind() const override { return BackendKind::simulated; }
    const std::string& reason() const override { return reason_; }
    std::uint64_t resume_alignment(int file) const override {
        return disk_->is_direct(file) ? SimulatedDisk::sector_bytes : 1;
    }
    void close(int file) override { disk_->close(file); }
    Result<FileSystemInfo> file_system(const std::string& directory) override {
        if (!disk_->exists(directory))
            return fail(std::make_error_code(std::errc::no_such_file_or_directory), "examine");
        return FileSystemInfo{.type = "simulated",
                              .direct = disk_->grants_direct(),
                              .allocate = disk_->grants_direct(),
                              .memory_alignment = SimulatedDisk::sector_bytes,
                              .offset_alignment = SimulatedDisk::sector_bytes};
    }

  private:
    std::shared_ptr<SimulatedDisk> disk_;
    unsigned depth_;
    std::string reason_ = "a simulated disk";
    Wake wake_;
    std::uint64_t wake_id_ = 0;
    OperationQueue started_;
};

} // namespace

std::unique_ptr<Backend> make_simulated_backend(std::shared_ptr<SimulatedDisk> disk,
                                                unsigned depth) {
    return std::make_unique<SimulatedBackend>(std::move(disk), depth);
}

std::unique_ptr<Reactor> make_simulated_reactor(std::shared_ptr<SimulatedDisk> disk,
                                                ReactorOptions options) {
    auto context = std::make_unique<boost::asio::io_context>(1);
    boost::asio::io_context& used = *context;
    return make_reactor(make_simulated_backend(std::move(disk), options.queue_depth), options,
                        std::move(context), used);
}

std::unique_ptr<Reactor> make_simulated_reactor(std::shared_ptr<SimulatedDisk> disk,
                                                boost::asio::io_context& context,
                                                ReactorOptions options) {
    return make_reactor(make_simulated_backend(std::move(disk), options.queue_depth), options,
                        nullptr, context);
}

} // namespace safering
