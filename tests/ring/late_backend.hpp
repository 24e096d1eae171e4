// A backend whose operations begin only when the test lets them: what is in flight stays so.
#pragma once

#include <mutex>

#include "../io/forwarding_backend.hpp"

namespace safering::test {

class LateBackend final : public ForwardingBackend {
  public:
    explicit LateBackend(std::unique_ptr<Backend> backend)
        : ForwardingBackend(std::move(backend)) {}

    /// From now on transfers wait. Any thread, as what follows.
    void hold() {
        const std::lock_guard lock(mutex_);
        held_ = true;
    }
    /// Under the lock to its end: whoever waits for the transfers may destroy this as soon as they begin.
    void let_go() {
        const std::lock_guard lock(mutex_);
        held_ = false;
        if (wake_)
            wake_();
    }
    /// Transfers that wait.
    std::size_t waiting() const {
        const std::lock_guard lock(mutex_);
        return late_.size();
    }

    void begin(Wake wake) override {
        {
            const std::lock_guard lock(mutex_);
            wake_ = wake;
        }
        ForwardingBackend::begin(std::move(wake));
    }
    void start(Operation& operation) override {
        const Opcode op = operation.request.op;
        if (op == Opcode::read || op == Opcode::write) {
            const std::lock_guard lock(mutex_);
            if (held_)
                return late_.push_back(&operation);
        }
        ForwardingBackend::start(operation);
    }
    void flush() override {
        std::vector<Operation*> begun;
        {
            const std::lock_guard lock(mutex_);
            if (!held_)
                begun.swap(late_);
        }
        for (Operation* operation : begun)
            ForwardingBackend::start(*operation);
        ForwardingBackend::flush();
    }

  private:
    mutable std::mutex mutex_;
    bool held_ = false;
    Wake wake_;
    std::vector<Operation*> late_;
};

} // namespace safering::test
