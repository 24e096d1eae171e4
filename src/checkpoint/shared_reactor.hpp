// The reactor that a caller gave, or one made at first use.
#pragma once

#include <memory>

#include <safering/reactor.hpp>

namespace safering::checkpoint {

class SharedReactor {
  public:
    SharedReactor() = default;
    explicit SharedReactor(std::shared_ptr<Reactor> given) : reactor_(std::move(given)) {}

    /// Errors: what Reactor::create says.
    Result<std::shared_ptr<Reactor>> get() {
        if (!reactor_) {
            auto made = Reactor::create();
            if (!made)
                return std::unexpected(std::move(made.error()));
            reactor_ = std::move(*made);
        }
        return reactor_;
    }
    /// Throws Exception.
    const std::shared_ptr<Reactor>& value() {
        value_or_throw(get());
        return reactor_;
    }

  private:
    std::shared_ptr<Reactor> reactor_;
};

} // namespace safering::checkpoint
