// A window of a conversion in memory: read with the names and dtypes of the source, written with those of the
// destination, from the same bytes.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <safering/planner.hpp>

#include "checkpoint/convert_target.hpp"

namespace safering::checkpoint {

/// The memory that a window takes, whichever of its two forms is larger.
Result<std::uint64_t> window_bytes(const SavePlan& window, const ConvertTarget& target);

class ConvertWindow {
  public:
    /// Over memory of at least window_bytes().
    static Result<ConvertWindow> make(const SavePlan& window, const ConvertTarget& target,
                                      const std::shared_ptr<std::byte>& memory);

    /// Where the source goes; to be called once.
    std::vector<LocalDestination> take_destinations() { return std::move(destinations_); }

    struct Overflow {
        /// Finite values that became infinite, and the first tensor that had some.
        std::uint64_t values = 0;
        std::string fqn{};
    };
    /// When the source has been read: makes of it what is to be written.
    Overflow convert();
    /// To be called once, after convert().
    std::vector<LocalTensor> take_tensors() { return std::move(tensors_); }

  private:
    struct Change {
        std::byte* data;
        Dtype from;
        std::size_t tensor; // in tensors_
        std::uint64_t elements;
    };
    std::vector<LocalDestination> destinations_;
    std::vector<LocalTensor> tensors_;
    std::vector<Change> changes_;
};

} // namespace safering::checkpoint
