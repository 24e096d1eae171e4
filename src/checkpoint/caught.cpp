#include "checkpoint/caught.hpp"

#include <new>
#include <utility>

#include <boost/system/system_error.hpp>

namespace safering::checkpoint {

Error error_of(const std::exception& thrown, std::string operation) {
    if (const auto* own = dynamic_cast<const Exception*>(&thrown))
        return own->error();
    Error error{.code = std::make_error_code(std::errc::io_error),
                .operation = std::move(operation),
                .detail = thrown.what()};
    if (const auto* system = dynamic_cast<const std::system_error*>(&thrown))
        error.code = system->code();
    else if (const auto* boosts = dynamic_cast<const boost::system::system_error*>(&thrown))
        error.code = boosts->code();
    else if (dynamic_cast<const std::bad_alloc*>(&thrown) != nullptr)
        error.code = std::make_error_code(std::errc::not_enough_memory);
    return error;
}

std::exception_ptr exception_of(Error error) {
    try {
        return std::make_exception_ptr(Exception(std::move(error)));
    } catch (...) {
        return std::current_exception();
    }
}

} // namespace safering::checkpoint
