// Edits the log of a recorded save, as if the protocol had been another.
#pragma once

#include <string_view>

#include "enumerate.hpp"

namespace safering::test {

class LogEditor {
  public:
    /// The `nth` record of this kind whose path ends so. It must exist.
    struct Which {
        Opcode op;
        std::string_view path_ends{};
        std::size_t nth = 0;
    };

    explicit LogEditor(Scenario scenario) : scenario_(std::move(scenario)) {}

    /// One record never happened.
    LogEditor& drop(const Which& which);
    /// No record of this kind and path ever happened.
    LogEditor& drop_all(const Which& which);
    /// One happened before another.
    LogEditor& move_before(const Which& moved, const Which& other);
    /// One happened at the end, after success was reported.
    LogEditor& move_behind_report(const Which& moved);
    /// Neither this one nor any after it happened.
    LogEditor& truncate_from(const Which& which);
    LogEditor& append(SimulatedDisk::Record record);
    LogEditor& insert_before(const Which& which, SimulatedDisk::Record record);
    SimulatedDisk::Record& at(const Which& which) { return *find(which); }
    const SimulatedTree& base() const { return scenario_.recording.base; }
    Scenario done() { return std::move(scenario_); }

  private:
    using Log = std::vector<SimulatedDisk::Record>;
    Log& log() { return scenario_.recording.log; }
    Log::iterator find(const Which& which);

    Scenario scenario_;
};

} // namespace safering::test
