#include "python/bindings.hpp"

#include <safering/checkpoint.hpp>
#include <safering/save_load.hpp>

#include "checkpoint/convert.hpp"

namespace safering::python {

namespace {

using Texts = std::vector<std::pair<std::string, std::string>>;

void save(const std::string& path, const py::list& names, const TensorColumns& tensors,
          const Texts& metadata, std::shared_ptr<Reactor> reactor) {
    std::vector<TensorView> views = tensors.views<TensorView>();
    check_columns(views.size(), {names});
    std::vector<NamedTensor> named(views.size());
    for (std::size_t i = 0; i < views.size(); ++i)
        named[i] = {std::string(to_text(names[i])), std::move(views[i])};
    const py::gil_scoped_release release;
    save_file(path, named, metadata, std::move(reactor));
}

py::dict outline(const SaveReport& report) {
    py::dict out;
    out["path"] = to_path(report.path);
    out["files"] = report.files;
    out["tensor_bytes"] = report.tensor_bytes;
    out["notes"] = report.notes;
    return out;
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
    return outline(report);
}

// A conversion into the files of a mapping that several ranks share. Parts and results travel as bytes.
class Conversion {
  public:
    Conversion(std::string source, std::string destination, std::shared_ptr<Reactor> reactor,
               FqnToIndexMapping mapping)
        : reactor_(std::move(reactor)), count_(std::make_shared<ProgressCount>()),
          conversion_(std::move(source), std::move(destination), *reactor_,
                      {.fqn_to_index_mapping = std::move(mapping),
                       .progress =
                           [count = count_](std::uint64_t done, std::uint64_t total) {
                               count->total = total;
                               count->done = done;
                           },
                       .stop = stop_.get_token()}) {}

    // The attempt that wrote the source.
    std::string open() {
        const py::gil_scoped_release release;
        value_or_throw(conversion_.open());
        return conversion_.attempt();
    }

    // Of each rank: its windows.
    py::list prepare(std::uint32_t ranks) {
        std::vector<std::vector<SavePlan>> parts;
        {
            const py::gil_scoped_release release;
            parts = value_or_throw(conversion_.prepare(ranks));
        }
        py::list out;
        for (const std::vector<SavePlan>& part : parts) {
            py::list windows;
            for (const SavePlan& window : part)
                windows.append(to_bytes_object(to_bytes(window)));
            out.append(windows);
        }
        return out;
    }

    py::list write(const std::vector<py::bytes>& windows, const py::object& progress) {
        std::vector<SavePlan> part;
        for (const py::bytes& window : windows)
            part.push_back(value_or_throw(save_plan_from_bytes(to_span(window))));
        std::future<std::vector<WriteResults>> running =
            std::async(std::launch::async, [&] { return value_or_throw(conversion_.write(part)); });
        py::list out;
        for (const WriteResults& results :
             python::wait(running, progress, *count_, [this] { stop_.request_stop(); }))
            out.append(to_bytes_object(to_bytes(results)));
        return out;
    }

    py::dict finish(const std::vector<py::bytes>& packed) {
        std::vector<WriteResults> results = to_results(packed);
        SaveReport report;
        {
            const py::gil_scoped_release release;
            report = value_or_throw(conversion_.finish(std::move(results)));
        }
        return outline(report);
    }

    void abort() {
        const py::gil_scoped_release release;
        value_or_throw(conversion_.abort());
    }

  private:
    std::shared_ptr<Reactor> reactor_;
    std::shared_ptr<ProgressCount> count_;
    std::stop_source stop_;
    checkpoint::Conversion conversion_;
};

} // namespace

void bind_files(py::module_& module) {
    module.def("save_file", &save, py::arg("path"), py::arg("names"), py::arg("tensors"),
               py::arg("metadata"), py::arg("reactor"));
    module.def("convert", &convert, py::arg("source"), py::arg("destination"), py::arg("reactor"),
               py::arg("files") = 0, py::arg("max_file_bytes") = 0);
    py::class_<Conversion>(module, "Conversion")
        .def(py::init<std::string, std::string, std::shared_ptr<Reactor>, FqnToIndexMapping>(),
             py::arg("source"), py::arg("destination"), py::arg("reactor"), py::arg("mapping"))
        .def("open", &Conversion::open)
        .def("prepare", &Conversion::prepare, py::arg("ranks"))
        .def("write", &Conversion::write, py::arg("windows"), py::arg("progress"))
        .def("finish", &Conversion::finish, py::arg("results"))
        .def("abort", &Conversion::abort);
}

} // namespace safering::python
