#include "safetensors/tensor_table.hpp"

#include <algorithm>
#include <numeric>
#include <string_view>

#include <fmt/format.h>

namespace safering::safetensors {

namespace {

// A tensor of whole pages at the front leaves the next tensor on a page, too.
constexpr std::uint64_t page_bytes = 4096;

std::unexpected<Error> bad_table(Errc code, const std::string& file, std::string tensor,
                                 std::string detail) {
    return std::unexpected(Error{.code = code,
                                 .operation = "parse header",
                                 .file = file,
                                 .tensor = std::move(tensor),
                                 .detail = std::move(detail)});
}

// Sorts through an index, since an entry is many times as large as one, and stably; gives the index.
template <typename Tensor, typename Less>
std::vector<std::uint32_t> sort_entries(std::vector<Tensor>& tensors, Less less) {
    std::vector<std::uint32_t> order(tensors.size());
    std::iota(order.begin(), order.end(), 0);
    if (std::is_sorted(tensors.begin(), tensors.end(), less))
        return order;
    std::stable_sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
        return less(tensors[a], tensors[b]);
    });
    std::vector<Tensor> sorted;
    sorted.reserve(tensors.size());
    for (const std::uint32_t index : order)
        sorted.push_back(std::move(tensors[index]));
    tensors = std::move(sorted);
    return order;
}

} // namespace

Result<void> order_tensors(std::vector<TensorEntry>& tensors, std::uint64_t data_bytes,
                           const std::string& file) {
    sort_entries(tensors,
                 [](const TensorEntry& a, const TensorEntry& b) { return a.data < b.data; });
    std::uint64_t expected = 0;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        const TensorEntry& tensor = tensors[i];
        const auto [begin, end] = tensor.data;
        // Not a hole: nothing that the file could hold would fill it.
        if (begin > expected && end > data_bytes)
            return bad_table(
                Errc::header_offsets_beyond_file, file, tensor.name.str(),
                fmt::format("expected offsets within the file's {} bytes of data, found [{}, {})",
                            data_bytes, begin, end));
        if (begin > expected)
            return bad_table(Errc::header_hole, file, tensor.name.str(),
                             fmt::format("expected the tensor to begin at {}, found [{}, {})",
                                         expected, begin, end));
        if (begin < expected)
            return bad_table(
                Errc::header_overlap, file, tensor.name.str(),
                fmt::format("expected the tensor to begin at {}, found [{}, {}), which "
                            "overlaps \"{}\" at [{}, {})",
                            expected, begin, end, escaped(tensors[i - 1].name),
                            tensors[i - 1].data.begin, tensors[i - 1].data.end));
        expected = end;
    }
    if (expected > data_bytes)
        return bad_table(Errc::header_missing_data, file, tensors.back().name.str(),
                         fmt::format("expected {} bytes of data, found {}; the file was cut short",
                                     expected, data_bytes));
    if (expected < data_bytes)
        return bad_table(Errc::header_trailing_data, file, {},
                         fmt::format("expected {} bytes of data, found {}", expected, data_bytes));
    return {};
}

Result<void> assign_offsets(std::vector<TensorEntryView>& tensors,
                            std::vector<std::uint32_t>* origin) {
    constexpr const char* operation = "assign offsets";
    for (TensorEntryView& tensor : tensors) {
        const Result<std::uint64_t> size = byte_size(tensor.dtype, tensor.shape);
        if (!size) {
            Error error = size.error();
            error.operation = operation;
            error.tensor = tensor.name;
            return std::unexpected(std::move(error));
        }
        tensor.data = {0, *size};
    }
    // By name, where equal ones meet, then without disturbing that by kind: whole pages first, and falling
    // element size after them.
    const auto by_name =
        sort_entries(tensors, [](const TensorEntryView& a, const TensorEntryView& b) {
            return a.name < b.name;
        });
    const auto twice = std::ranges::adjacent_find(tensors, {}, &TensorEntryView::name);
    if (twice != tensors.end())
        return std::unexpected(Error{.code = Errc::header_duplicate_key,
                                     .operation = operation,
                                     .tensor = std::string(twice->name),
                                     .detail = "expected each name once, found it twice"});
    const auto kind = [](const TensorEntryView& tensor) {
        return tensor.data.end % page_bytes == 0 ? 0U : 65U - bits(tensor.dtype);
    };
    auto order = sort_entries(tensors, [&](const TensorEntryView& a, const TensorEntryView& b) {
        return kind(a) < kind(b);
    });
    if (origin != nullptr) {
        for (std::uint32_t& place : order)
            place = by_name[place];
        *origin = std::move(order);
    }
    std::uint64_t at = 0;
    for (TensorEntryView& tensor : tensors) {
        std::uint64_t end = 0;
        if (__builtin_add_overflow(at, tensor.data.end, &end))
            return std::unexpected(Error{
                .code = Errc::header_size_overflow,
                .operation = operation,
                .tensor = std::string(tensor.name),
                .detail =
                    fmt::format("expected fewer than 2^64 bytes in all, found {} bytes after {}",
                                tensor.data.end, at)});
        tensor.data = {at, end};
        at = end;
    }
    return {};
}

} // namespace safering::safetensors
