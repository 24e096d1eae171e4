// A backend that has another one do everything: what a test's backend does not change.
#pragma once

#include "io/backend.hpp"

namespace safering::test {

class ForwardingBackend : public Backend {
  public:
    explicit ForwardingBackend(std::unique_ptr<Backend> backend) : backend_(std::move(backend)) {}

    void begin(Wake wake) override { backend_->begin(std::move(wake)); }
    void start(Operation& operation) override { backend_->start(operation); }
    void flush() override { backend_->flush(); }
    void reap(OperationQueue& ended) override { backend_->reap(ended); }
    unsigned capacity() const override { return backend_->capacity(); }
    BackendKind kind() const override { return backend_->kind(); }
    const std::string& reason() const override { return backend_->reason(); }
    std::uint64_t resume_alignment(int file) const override {
        return backend_->resume_alignment(file);
    }
    void close(int file) override { backend_->close(file); }
    Result<FileSystemInfo> file_system(const std::string& directory) override {
        return backend_->file_system(directory);
    }

  private:
    std::unique_ptr<Backend> backend_;
};

} // namespace safering::test
