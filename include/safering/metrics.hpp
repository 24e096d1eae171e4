// Counters of this process, for monitoring.
#pragma once

#include <string>

#include <safering/export.hpp>

namespace safering {

/// What all saves and loads of this process did since it began, as Prometheus' text format 0.0.4 has it: to be served
/// as text/plain, or written for node_exporter's textfile collector. Names begin with safering_; counters only rise,
/// those with a `direction` are of write_data and read_data. A save that fails counts where it failed: in
/// write_data on that rank, in finish on the coordinator. Any thread; costs microseconds.
SAFERING_API std::string prometheus_text();

} // namespace safering
