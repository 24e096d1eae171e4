// Real saves, conversions and clean-ups on a simulated disk, recorded for the enumeration of crash states.
#pragma once

#include <cstdint>
#include <vector>

#include "../checkpoint/disk_fixture.hpp"
#include "enumerate.hpp"

namespace safering::test {

/// Two tensors that differ in every byte from one `seed` to the next: few sectors, so that every choice can be tried.
Model tiny_model(std::uint64_t seed);
/// As save(), but what the ranks do reaches the disk in the same order every time.
Result<SaveReport> save_in_order(const Model& model, Sharding sharding, const std::string& path,
                                 const WriterOptions& options, SimulatedDisk& disk,
                                 const std::shared_ptr<Reactor>& reactor);
/// Everything on it is durable, and its log is empty.
std::shared_ptr<SimulatedDisk> settled(const SimulatedDisk& disk);
/// A disk with a directory for checkpoints, and in it this one.
std::shared_ptr<SimulatedDisk> disk_with(const Model& model, Sharding sharding,
                                         const WriterOptions& options);
std::shared_ptr<SimulatedDisk> empty_disk();
/// What the operations since the last settled() make a scenario of, all of them reported.
Scenario recorded(std::string name, const SimulatedDisk& disk, Expectations expectations);
/// The target as it is now.
Expected expected_on(const SimulatedDisk& disk, Model model,
                     const std::string& path = "/ckpt/step");
/// `old` on the disk, replaced by `fresh`, by one rank or by two that share files.
Scenario replace(std::string name, const WriterOptions& before, Sharding sharding,
                 const WriterOptions& after);
Scenario first_save(std::string name, Sharding sharding, const WriterOptions& options);

/// One of each kind, small enough for (nearly) exhaustive enumeration.
std::vector<Scenario> small_scenarios();
/// A larger one with operations that overtake each other; any seed.
Scenario random_scenario(std::uint64_t seed);

} // namespace safering::test
