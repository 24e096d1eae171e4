#include <safering/tuning.hpp>

#include "python/bindings.hpp"

namespace safering::python {

namespace {

BackendChoice to_choice(const std::string& backend) {
    if (backend == "automatic")
        return BackendChoice::automatic;
    if (backend == "io_uring")
        return BackendChoice::io_uring;
    if (backend == "threads")
        return BackendChoice::threads;
    throw py::value_error("backend must be 'automatic', 'io_uring' or 'threads', not '" + backend +
                          "'");
}

std::shared_ptr<Reactor> make_reactor(const std::string& backend,
                                      std::optional<std::size_t> buffer_memory) {
    ReactorOptions options{.backend = to_choice(backend)};
    if (!buffer_memory) {
        options.origin = "defaults";
        const py::gil_scoped_release release;
        return value_or_throw(Reactor::create(options));
    }
    // As many buffers as there is memory for, of the usual size where two of them fit.
    constexpr std::size_t least = 4096;
    if (*buffer_memory < 2 * least)
        throw py::value_error("buffer_memory must be at least 8192 bytes");
    options.buffer_bytes = std::min(options.buffer_bytes, std::bit_floor(*buffer_memory / 2));
    options.buffer_count =
        static_cast<unsigned>(std::min<std::size_t>(*buffer_memory / options.buffer_bytes, 1024));
    const py::gil_scoped_release release;
    return value_or_throw(Reactor::create(options));
}

std::shared_ptr<Reactor> make_tuned_reactor(const std::string& path, const std::string& backend) {
    const BackendChoice choice = to_choice(backend);
    const py::gil_scoped_release release;
    return value_or_throw(create_tuned_reactor(path, choice));
}

} // namespace

py::dict to_dict(const ReactorInfo& info) {
    py::dict out;
    out["backend"] = std::string(name(info.backend));
    out["reason"] = info.reason;
    out["queue_depth"] = info.queue_depth;
    out["buffer_bytes"] = info.buffer_bytes;
    out["buffer_count"] = info.buffer_count;
    out["transfer_bytes"] = info.transfer_bytes;
    out["huge_pages"] = info.huge_pages;
    out["origin"] = info.origin;
    return out;
}

void bind_reactor(py::module_& module) {
    py::class_<Reactor, std::shared_ptr<Reactor>>(module, "Reactor")
        .def(py::init(&make_reactor), py::arg("backend"), py::arg("buffer_memory"))
        .def_static("tuned", &make_tuned_reactor, py::arg("path"), py::arg("backend"))
        .def("info", [](const Reactor& reactor) { return to_dict(reactor.info()); })
        .def("endpoint", [](Reactor& reactor) { return reactor.endpoint(); });
}

} // namespace safering::python
