// Elements of one floating dtype as those of another.
#pragma once

#include <cstddef>
#include <cstdint>

#include <safering/dtype.hpp>

namespace safering::plan {

/// F16, BF16, F32 and F64.
bool is_plain_float(Dtype dtype);

/// Both plain floats. To the nearest, ties to the even one, rounded once whatever the pair; beyond the largest:
/// infinity; infinities and signs of zeros stay, NaNs stay NaNs (quiet, with sign and what fits of the payload).
/// Denormals are right on both sides. Does not look at the processor's rounding mode or flush-to-zero.
///
/// `to` and `from` are apart, or begin at the same byte: it goes through the elements from the end that makes that
/// right. No alignment is needed. How many finite elements became infinite.
std::uint64_t convert_floats(std::byte* to, Dtype to_dtype, const std::byte* from, Dtype from_dtype,
                             std::size_t count);

} // namespace safering::plan
