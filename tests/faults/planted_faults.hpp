// Bugs put into the handling of faults on purpose, to see try_faults() find them. None is in the library: the disk
// tells the reactor what a library with the bug would have believed, or the run behaves as its caller would see it.
#pragma once

#include "try_faults.hpp"

namespace safering::test {

struct PlantedFault {
    std::string name;
    std::string how;
    /// The demand of try_faults() that it must break.
    std::string found_by;
    FaultScenario scenario;
    FaultOptions options{};
};

std::vector<PlantedFault> planted_faults();

} // namespace safering::test
