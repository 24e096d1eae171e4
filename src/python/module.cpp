// The module safering._native.
#include "python/bindings.hpp"

#include <safering/dtype.hpp>
#include <safering/metrics.hpp>

namespace safering::python {

namespace {

// safering._errors.make gives the exception for an Error; it is Python so that it can be pickled from rank
// to rank.
void raise(const Error& error) {
    const py::object make = py::module_::import("safering._errors").attr("make");
    const bool system = error.code.category() == std::system_category() ||
                        error.code.category() == std::generic_category();
    const py::object exception = make(
        error.message(), system ? error.code.value() : 0, error.code.message(), error.operation,
        py::bytes(error.file), py::bytes(error.tensor), error.offset, error.length, error.detail);
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception.ptr())), exception.ptr());
}

void translate(std::exception_ptr pointer) {
    try {
        if (pointer)
            std::rethrow_exception(pointer);
    } catch (const Exception& exception) {
        raise(exception.error());
    }
}

} // namespace

} // namespace safering::python

PYBIND11_MODULE(_native, module) {
    namespace py = pybind11;
    using namespace safering::python;
    py::register_exception_translator(&translate);
    py::list dtypes;
    for (std::size_t i = 0; i < safering::dtype_count; ++i)
        dtypes.append(py::str(std::string(name(static_cast<safering::Dtype>(i)))));
    // The name of each dtype; calls give dtypes as positions in it.
    module.attr("dtype_names") = py::tuple(dtypes);
    module.def("prometheus_text", &safering::prometheus_text);
    bind_reactor(module);
    bind_save_plan(module);
    bind_writer(module);
    bind_reader(module);
    bind_files(module);
    bind_retention(module);
    bind_staging(module);
    bind_async_saver(module);
    bind_stored_file(module);
    bind_any_file(module);
}
