// A backend that has another one carry out what it does not answer itself.
#pragma once

#include <utility>
#include <vector>

#include "forwarding_backend.hpp"

namespace safering::test {

class AnsweringBackend : public ForwardingBackend {
  public:
    using ForwardingBackend::ForwardingBackend;

    void begin(Wake wake) override {
        wake_ = wake;
        ForwardingBackend::begin(std::move(wake));
    }
    void reap(std::vector<Operation*>& ended) override {
        ended.insert(ended.end(), answered_.begin(), answered_.end());
        answered_.clear();
        ForwardingBackend::reap(ended);
    }

  protected:
    /// Instead of start(): the operation fails with `error`.
    void fail(Operation& operation, std::error_code error) {
        operation.completion = {.error = error};
        answered_.push_back(&operation);
        wake_();
    }

  private:
    Wake wake_;
    std::vector<Operation*> answered_;
};

} // namespace safering::test
