// A backend that fails some operations of another instead of carrying them out.
#pragma once

#include <atomic>
#include <cerrno>
#include <random>

#include "answering_backend.hpp"

namespace safering::test {

class FaultyBackend final : public AnsweringBackend {
  public:
    FaultyBackend(std::unique_ptr<Backend> backend, std::uint64_t seed)
        : AnsweringBackend(std::move(backend)), random_(seed) {}

    /// One operation in so many; 0: none. Any thread.
    void fail_one_in(unsigned operations) { one_in_ = operations; }
    /// The same, which ones being a matter of this seed. While no operation is under way.
    void fail_one_in(unsigned operations, std::uint64_t seed) {
        random_.seed(seed);
        one_in_ = operations;
    }
    std::uint64_t failed() const { return failed_; }
    /// Whether it says what failed operations say here.
    static bool is_injected(const Error& error) {
        return error.code == std::error_code(EIO, std::system_category()) ||
               error.code == std::error_code(ENOSPC, std::system_category());
    }

    void start(Operation& operation) override {
        const unsigned one_in = one_in_;
        // A close that fails has closed all the same.
        if (one_in == 0 || operation.request.op == Opcode::close || random_() % one_in != 0)
            return ForwardingBackend::start(operation);
        ++failed_;
        fail(operation, {random_() % 2 == 0 ? EIO : ENOSPC, std::system_category()});
    }

  private:
    std::mt19937_64 random_;
    std::atomic<unsigned> one_in_ = 0;
    std::atomic<std::uint64_t> failed_ = 0;
};

} // namespace safering::test
