// A simulated disk with one reactor for thousands of runs: making a reactor for each cost more than the runs.
#pragma once

#include <memory>
#include <string>

#include "io/simulated_disk.hpp"

namespace safering::test {

class Stage {
  public:
    Stage();

    /// As if it were new; what was on it before is gone.
    void set(const SimulatedTree& tree);
    /// What the run before has not given back, once all that it had begun has ended; "" where nothing.
    std::string leaks();
    std::vector<std::string> names(const std::string& directory) const;

    const std::shared_ptr<SimulatedDisk> disk = std::make_shared<SimulatedDisk>();
    const std::shared_ptr<Reactor> reactor;

  private:
    std::int64_t descriptors_ = 0; // of the process, the first time
};

} // namespace safering::test
