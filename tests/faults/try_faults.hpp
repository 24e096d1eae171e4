// Lets every operation of a run fail, one after the other and in every way, and demands each time:
//
//   1. the run ends;
//   2. what can be repeated or resumed is, and then nothing of it is seen;
//   3. otherwise its error is what the disk said, of a file that the disk said it of;
//   4. no descriptor and no buffer is kept;
//   5. the old checkpoint is there, or the new one whole; the new one on the platter where success was reported;
//   6. nothing lies beside it, unless removing failed too;
//   7. the run succeeds when it is tried again, and then nothing lies beside it at all.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../crash/recovery.hpp"
#include "fault_case.hpp"
#include "stage.hpp"

namespace safering::test {

struct FaultScenario {
    std::string name;
    SimulatedTree before;
    /// What it should leave, and what it replaces. A run that only reads leaves `old` alone.
    Expectations expectations;
    bool only_reads = false;
    /// Also where the library pauses between its tries.
    bool patient = false;
    /// The notes of what could not be tidied up.
    std::function<Result<std::vector<std::string>>(const Stage&)> run;
};

struct FaultFinding {
    /// Which demand: "hang", "transient", "wrong error", "leak", "harmed", "not durable", "left over", "retry".
    std::string demand;
    std::string text;
};

struct FaultTotals {
    std::uint64_t operations = 0;
    std::uint64_t cases = 0;
    std::uint64_t failed = 0;
    std::uint64_t survived = 0;
    std::vector<FaultFinding> findings;
};

struct FaultOptions {
    /// Ends the trial at the first finding.
    bool stop_at_first = false;
    /// Only so many of the cases, evenly chosen; 0: all.
    std::size_t cases = 0;
    /// Called once a disk is set and its fault armed: the place to plant a bug.
    std::function<void(SimulatedDisk&)> plant{};
    /// How long a run may take before it counts as hanging; then on_hang is called.
    unsigned hang_seconds = 120;
    std::function<void(SimulatedDisk&)> on_hang{};
};

FaultTotals try_faults(const FaultScenario& scenario, const FaultOptions& options = {});

/// The runs of the real library.
std::vector<FaultScenario> fault_scenarios();

} // namespace safering::test
