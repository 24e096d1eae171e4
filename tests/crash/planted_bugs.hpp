// Bugs put into the protocol on purpose, each in one place, to see the search for crash states find it. None is in
// the library: a log is edited as if the save had been written that way, or the disk answers as a library with the
// bug would have treated it.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "enumerate.hpp"

namespace safering::test {

struct PlantedBug {
    std::string name;
    /// How it was planted.
    std::string how;
    /// The check that must find it, as Enumeration::broken says.
    std::string found_by;
    std::function<Scenario()> scenario;
};

std::vector<PlantedBug> planted_bugs();

} // namespace safering::test
