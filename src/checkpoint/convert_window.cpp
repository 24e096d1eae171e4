#include "checkpoint/convert_window.hpp"

#include <algorithm>

#include "checkpoint/windows.hpp"
#include "plan/box.hpp"
#include "plan/float_convert.hpp"

namespace safering::checkpoint {

namespace {

struct ItemBytes {
    std::uint64_t read = 0;
    std::uint64_t written = 0;
    std::uint64_t taken() const { return round_up(std::max(read, written), tensor_alignment); }
};

Result<ItemBytes> item_bytes(const WriteItem& item, Dtype source) {
    auto box = plan::FileBox::make(item.dtype, item.size, item.chunk.offsets, item.chunk.sizes);
    if (!box)
        return std::unexpected(std::move(box.error()));
    ItemBytes out{.read = box->bytes(), .written = box->bytes()};
    if (source != item.dtype) { // both have whole bytes
        auto read = byte_size(source, item.chunk.sizes);
        if (!read)
            return std::unexpected(std::move(read.error()));
        out.read = *read;
    }
    return out;
}

} // namespace

Result<std::uint64_t> window_bytes(const SavePlan& window, const ConvertTarget& target) {
    std::uint64_t total = 0;
    for (const WriteItem& item : window.items) {
        const auto bytes = item_bytes(item, target.source_of(item.fqn, item.dtype).dtype);
        if (!bytes)
            return std::unexpected(bytes.error());
        total += bytes->taken();
    }
    return total;
}

Result<ConvertWindow> ConvertWindow::make(const SavePlan& window, const ConvertTarget& target,
                                          const std::shared_ptr<std::byte>& memory) {
    ConvertWindow out;
    std::uint64_t at = 0;
    for (const WriteItem& item : window.items) {
        ConvertTarget::Source source = target.source_of(item.fqn, item.dtype);
        const auto bytes = item_bytes(item, source.dtype);
        if (!bytes)
            return std::unexpected(bytes.error());
        std::byte* data = memory.get() + at;
        at += bytes->taken();
        if (source.dtype != item.dtype)
            out.changes_.push_back(
                {data, source.dtype, out.tensors_.size(), bytes->written / (bits(item.dtype) / 8)});
        const MutableTensorView read{.data = data,
                                     .dtype = source.dtype,
                                     .shape = item.chunk.sizes,
                                     .strides = {},
                                     .owner = memory};
        out.destinations_.push_back({std::move(source.fqn), read, item.size, item.chunk.offsets});
        const TensorView written{data, item.dtype, item.chunk.sizes, {}, memory};
        out.tensors_.push_back({item.fqn, written, item.size, item.chunk.offsets});
    }
    return out;
}

ConvertWindow::Overflow ConvertWindow::convert() {
    Overflow overflow;
    for (const Change& change : changes_) {
        const LocalTensor& tensor = tensors_[change.tensor];
        const std::uint64_t lost = plan::convert_floats(change.data, tensor.data.dtype, change.data,
                                                        change.from, change.elements);
        if (lost != 0 && overflow.values == 0)
            overflow.fqn = tensor.fqn;
        overflow.values += lost;
    }
    return overflow;
}

} // namespace safering::checkpoint
