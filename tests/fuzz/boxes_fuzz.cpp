// A box of a stored tensor and memory with strides of any order: what is gathered comes back, nothing beside it is
// touched, and runs, bytes and digests agree.
#include <algorithm>
#include <numeric>

#include "input.hpp"
#include "plan/box.hpp"

using namespace safering;
using namespace safering::plan;

namespace {

constexpr std::byte untouched{0xA5};

// Strides of `sizes` packed in an order of dimensions of the input's choice.
Strides strides_of(test::Input& input, const Shape& sizes) {
    std::vector<std::size_t> order(sizes.size());
    std::iota(order.begin(), order.end(), 0u);
    for (std::size_t i = order.size(); i > 1; --i)
        std::swap(order[i - 1], order[input.below(i)]);
    Strides strides(sizes.size(), 0);
    std::int64_t step = 1;
    for (const std::size_t d : order) {
        strides[d] = step;
        step *= static_cast<std::int64_t>(std::max<std::uint64_t>(sizes[d], 1));
    }
    return strides;
}

void check_copies(const BoxCopy& copy, ByteRange window) {
    const FileBox& box = copy.file_box();
    window = window.clip(box.hull());
    std::vector<std::byte> memory(box.bytes() + 1, untouched);
    for (std::size_t i = 0; i < box.bytes(); ++i)
        memory[i] = static_cast<std::byte>(i * 7 + 1);
    std::vector<std::byte> image(window.size() + 1, untouched);
    Digest digest;
    copy.gather(memory.data(), image.data(), window, &digest);
    SAFERING_ASSERT(image.back() == untouched);
    SAFERING_ASSERT(digest.value() == digest_of_image(box, image.data(), window));
    std::uint64_t bytes = 0;
    box.for_each_run(window, [&](ByteRange run) {
        SAFERING_ASSERT(window.contains(run));
        bytes += run.size();
    });
    SAFERING_ASSERT(bytes == box.bytes_before(window.end) - box.bytes_before(window.begin));
    std::vector<std::byte> back(box.bytes() + 1, untouched);
    copy.scatter(image.data(), back.data(), window);
    SAFERING_ASSERT(back.back() == untouched);
    std::uint64_t same = 0;
    for (std::size_t i = 0; i < box.bytes(); ++i) {
        SAFERING_ASSERT(back[i] == memory[i] || back[i] == untouched);
        same += back[i] == memory[i];
    }
    SAFERING_ASSERT(same >= bytes);
    if (window == box.hull())
        SAFERING_ASSERT(std::equal(back.begin(), back.end(), memory.begin()));
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    test::Input input(data, size);
    const auto dtype = static_cast<Dtype>(input.below(dtype_count));
    const std::size_t rank = input.below(5);
    const Shape stored = input.shape(rank, 9);
    // Rarely one of another rank, or beyond the tensor: refused.
    const Shape offsets = input.shape(input.below(16) == 0 ? rank + 1 : rank, 6);
    const Shape sizes = input.shape(rank, 9);
    const Strides strides = input.below(2) == 0 ? Strides{} : strides_of(input, sizes);
    const auto copy = BoxCopy::make(dtype, stored, offsets, sizes, strides);
    if (!copy)
        return 0;
    const ByteRange hull = copy->file_box().hull();
    check_copies(*copy, hull);
    if (hull.empty())
        return 0;
    const std::uint64_t begin = hull.begin + input.below(hull.size());
    check_copies(*copy, {begin, begin + 1 + input.below(hull.end - begin)});
    return 0;
}
