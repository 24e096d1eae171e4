#include "checkpoint/check_source.hpp"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace safering::checkpoint {

Result<void> check_source(std::uint32_t rank, const WriteItem& planned, const TensorView& source) {
    const auto bad = [&](std::string detail) {
        Error error{.code = Errc::plan_shape_mismatch,
                    .operation = fmt::format("write data of rank {}", rank),
                    .tensor = std::string(planned.fqn),
                    .detail = std::move(detail)};
        return std::unexpected(std::move(error));
    };
    if (source.dtype != planned.dtype)
        return bad(
            fmt::format("planned as {}, the data is {}", name(planned.dtype), name(source.dtype)));
    if (source.shape != planned.chunk.sizes)
        return bad(fmt::format("planned as [{}], the data is [{}]",
                               fmt::join(planned.chunk.sizes, ","), fmt::join(source.shape, ",")));
    if (!source.strides.empty() && source.strides.size() != source.shape.size())
        return bad("strides and shape differ in rank");
    if (source.data == nullptr && std::ranges::find(source.shape, 0u) == source.shape.end())
        return bad("the data is a null pointer");
    return {};
}

} // namespace safering::checkpoint
