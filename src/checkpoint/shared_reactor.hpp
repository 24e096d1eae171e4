// The reactor that a caller gave, or one made at first use: as its path's file system was measured, if there is a path.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include <safering/tuning.hpp>

namespace safering::checkpoint {

class SharedReactor {
  public:
    SharedReactor() = default;
    explicit SharedReactor(std::shared_ptr<Reactor> given, std::string path = {})
        : reactor_(std::move(given)), path_(std::move(path)) {}

    /// Errors: what Reactor::create says.
    Result<std::shared_ptr<Reactor>> get() {
        if (!reactor_) {
            auto made = path_.empty() ? Reactor::create() : create_tuned_reactor(path_);
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
    std::string path_;
};

} // namespace safering::checkpoint
