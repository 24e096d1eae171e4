// Every way in which one operation of a run may fail, as cases: which operation, how, and for how long.
#pragma once

#include <string>
#include <vector>

#include "io/simulated_disk.hpp"

namespace safering::test {

/// An operation of a run without faults.
struct Traced {
    Opcode op;
    std::string path;
    /// How many of the same kind came before.
    std::uint64_t nth = 0;
};

/// Remembers the operations of a run; they come in the order in which they were carried out.
class Tracer {
  public:
    explicit Tracer(SimulatedDisk& disk);
    const std::vector<Traced>& operations() const { return operations_; }

  private:
    std::vector<Traced> operations_;
};

struct FaultCase {
    Fault fault;
    /// What a library that resumes and repeats must get over without a word.
    bool transient = false;
    std::string text;
};

/// All of a run: each operation x each error and shortening x once and for ever. `patient`: those too where the
/// library pauses again and again, a quarter of a second in all, for the first operation of each kind.
std::vector<FaultCase> fault_cases(const std::vector<Traced>& operations, bool patient);

} // namespace safering::test
