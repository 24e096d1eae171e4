#include "python/bindings.hpp"

#include <safering/checkpoint.hpp>
#include <safering/save_load.hpp>

namespace safering::python {

namespace {

using Texts = std::vector<std::pair<std::string, std::string>>;

void save(const std::string& path, const py::list& names, const TensorColumns& tensors,
          const Texts& metadata, std::shared_ptr<Reactor> reactor) {
    std::vector<TensorView> views = tensors.views<TensorView>();
    check_columns(views.size(), {names});
    std::vector<NamedTensor> named(views.size());
    for (std::size_t i = 0; i < views.size(); ++i)
        named[i] = {to_text(names[i]), std::move(views[i])};
    const py::gil_scoped_release release;
    save_file(path, named, metadata, std::move(reactor));
}

py::dict convert(const std::string& source, const std::string& destination,
                 const std::shared_ptr<Reactor>& reactor, std::uint32_t files,
                 std::uint64_t max_file_bytes) {
    SaveReport report;
    {
        const py::gil_scoped_release release;
        report = value_or_throw(convert_checkpoint(
            source, destination, *reactor, {.files = files, .max_file_bytes = max_file_bytes}));
    }
    py::dict out;
    out["path"] = report.path;
    out["files"] = report.files;
    out["tensor_bytes"] = report.tensor_bytes;
    out["notes"] = report.notes;
    return out;
}

} // namespace

void bind_files(py::module_& module) {
    module.def("save_file", &save, py::arg("path"), py::arg("names"), py::arg("tensors"),
               py::arg("metadata"), py::arg("reactor"));
    module.def("convert", &convert, py::arg("source"), py::arg("destination"), py::arg("reactor"),
               py::arg("files") = 0, py::arg("max_file_bytes") = 0);
}

} // namespace safering::python
