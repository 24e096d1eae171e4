// The counters behind prometheus_text(). Any thread; called at the end of jobs, not within.
#pragma once

#include <cstdint>

#include <safering/storage_reader.hpp>
#include <safering/work_report.hpp>

namespace safering::checkpoint::metrics {

enum class Outcome : std::uint8_t { good, failed };

void add_write(const WorkReport& work, Outcome outcome);
void add_read(const LoadReport& report, Outcome outcome);
/// `tensor_bytes` of all ranks, of a commit that succeeded.
void add_commit(std::uint64_t tensor_bytes, double seconds, Outcome outcome);
/// Bytes that were not those that were saved.
void add_mismatch();

} // namespace safering::checkpoint::metrics
