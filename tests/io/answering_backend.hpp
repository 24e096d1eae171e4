// A backend that has another one carry out what it does not answer itself.
#pragma once

#include <utility>

#include "forwarding_backend.hpp"

namespace safering::test {

class AnsweringBackend : public ForwardingBackend {
  public:
    using ForwardingBackend::ForwardingBackend;

    void begin(Wake wake) override {
        wake_ = wake;
        ForwardingBackend::begin(std::move(wake));
    }
    void reap(OperationQueue& ended) override {
        ended.append(answered_);
        ForwardingBackend::reap(ended);
    }

  protected:
    /// Instead of start(): the operation fails with `error`.
    void fail(Operation& operation, std::error_code error) {
        operation.completion = {.error = error};
        answered_.push_back(operation);
        wake_();
    }

  private:
    Wake wake_;
    OperationQueue answered_;
};

} // namespace safering::test
