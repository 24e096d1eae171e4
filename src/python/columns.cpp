#include "python/bindings.hpp"

#include <fmt/format.h>

namespace safering::python {

namespace {

template <typename Out, typename Convert>
Out to_numbers(py::handle numbers, Convert convert) {
    const auto fast = py::reinterpret_steal<py::object>(
        PySequence_Fast(numbers.ptr(), "expected a sequence of ints"));
    if (!fast)
        throw py::error_already_set();
    const Py_ssize_t size = PySequence_Fast_GET_SIZE(fast.ptr());
    Out out(static_cast<std::size_t>(size));
    for (Py_ssize_t i = 0; i < size; ++i) {
        out[static_cast<std::size_t>(i)] = convert(PySequence_Fast_GET_ITEM(fast.ptr(), i));
        if (PyErr_Occurred() != nullptr)
            throw py::error_already_set();
    }
    return out;
}

} // namespace

Shape to_shape(py::handle numbers) {
    return to_numbers<Shape>(numbers, [](PyObject* n) { return PyLong_AsUnsignedLongLong(n); });
}

Strides to_strides(py::handle numbers) {
    return to_numbers<Strides>(numbers, [](PyObject* n) { return PyLong_AsLongLong(n); });
}

py::tuple to_tuple(const Shape& shape) {
    py::tuple out(shape.size());
    for (std::size_t d = 0; d < shape.size(); ++d)
        out[d] = py::int_(shape[d]);
    return out;
}

Dtype to_dtype(py::handle code) {
    const auto value = py::cast<std::size_t>(code);
    if (value >= dtype_count)
        throw py::value_error(fmt::format("{} is not the number of a dtype", value));
    return static_cast<Dtype>(value);
}

ExchangeWay to_way(const std::string& text) {
    for (const ExchangeWay way : {ExchangeWay::automatic, ExchangeWay::off,
                                  ExchangeWay::process_memory, ExchangeWay::shared_memory})
        if (text == name(way))
            return way;
    throw py::value_error("exchange must be 'automatic', 'off', 'process_memory' or "
                          "'shared_memory', not '" +
                          text + "'");
}

py::object to_path(const std::string& path) {
    return py::reinterpret_steal<py::object>(
        PyUnicode_DecodeFSDefaultAndSize(path.data(), static_cast<py::ssize_t>(path.size())));
}

std::string_view to_text(py::handle text) {
    Py_ssize_t size = 0;
    const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (data == nullptr)
        throw py::error_already_set();
    return {data, static_cast<std::size_t>(size)};
}

std::span<const std::byte> to_span(const py::bytes& bytes) {
    const std::string_view view = bytes;
    return std::as_bytes(std::span(view));
}

py::bytes to_bytes_object(const std::vector<std::byte>& bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::vector<WriteResults> to_results(const std::vector<py::bytes>& packed) {
    std::vector<WriteResults> results;
    for (const py::bytes& bytes : packed)
        results.push_back(value_or_throw(write_results_from_bytes(to_span(bytes))));
    return results;
}

void check_columns(std::size_t count, std::initializer_list<py::sequence> columns) {
    for (const py::sequence& column : columns)
        if (py::len(column) != count)
            throw py::value_error(
                fmt::format("columns of {} and {} entries", count, py::len(column)));
}

} // namespace safering::python
