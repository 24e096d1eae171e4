// How an AsyncSaver speaks to the other ranks.
#pragma once

#include <memory>

#include <safering/async_saver.hpp>

namespace safering::checkpoint {

/// What is given, its throws as Errors; where nothing is, that of one rank alone.
std::shared_ptr<Collectives> ranks_of(std::shared_ptr<Collectives> given);

} // namespace safering::checkpoint
