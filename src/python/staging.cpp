// Memory for staged state dicts, kept from one asynchronous save to the next, and copies into it.
#include "python/bindings.hpp"

#include <safering/async_saver.hpp>

#include "checkpoint/staged_copy.hpp"
#include "io/staging_pool.hpp"

namespace safering::python {

namespace {

class StagingBuffer {
  public:
    explicit StagingBuffer(std::size_t bytes)
        : memory_(value_or_throw(io::StagingPool::of_process().take(bytes))), bytes_(bytes) {}

    std::byte* data() const { return memory_.get(); }
    std::size_t bytes() const { return bytes_; }

  private:
    std::shared_ptr<std::byte> memory_;
    std::size_t bytes_;
};

// Tensors to the addresses given, dense and row-major.
void copy_tensors(const py::list& places, const TensorColumns& tensors) {
    const std::vector<TensorView> views = tensors.views<TensorView>();
    check_columns(views.size(), {places});
    std::vector<checkpoint::StagingPiece> pieces;
    pieces.reserve(views.size());
    for (std::size_t i = 0; i < views.size(); ++i)
        pieces.push_back(value_or_throw(checkpoint::make_staging_piece(
            reinterpret_cast<std::byte*>(py::cast<std::uintptr_t>(places[i])), views[i])));
    const py::gil_scoped_release release;
    checkpoint::copy_pieces(pieces);
}

// Offsets of a plan's items in memory that lies as the files will, as far as one rank can tell.
py::tuple staging_layout(const SavePlan& plan, const FqnToIndexMapping& mapping, bool sharded) {
    const plan::StagingLayout layout = value_or_throw(checkpoint::expect_staging_layout(
        plan, sharded ? FileLayout::sharded : FileLayout::full, mapping));
    return py::make_tuple(layout.offsets, layout.bytes);
}

// Called on any thread, also when Python is about to end.
std::function<void(std::byte*, std::size_t)> to_hook(py::function function) {
    // Never freed: the pool outlives the interpreter.
    auto* const kept = new py::function(std::move(function));
    return [kept](std::byte* memory, std::size_t bytes) {
        if (Py_IsInitialized() == 0)
            return;
        const py::gil_scoped_acquire acquire;
        try {
            (*kept)(reinterpret_cast<std::uintptr_t>(memory), bytes);
        } catch (py::error_already_set& error) {
            error.discard_as_unraisable("safering staging memory");
        }
    };
}

} // namespace

void bind_staging(py::module_& module) {
    py::class_<StagingBuffer>(module, "StagingBuffer", py::buffer_protocol())
        .def(py::init<std::size_t>(), py::arg("size"))
        .def_property_readonly("address",
                               [](const StagingBuffer& buffer) {
                                   return reinterpret_cast<std::uintptr_t>(buffer.data());
                               })
        .def_buffer([](StagingBuffer& buffer) {
            return py::buffer_info(reinterpret_cast<std::uint8_t*>(buffer.data()),
                                   static_cast<py::ssize_t>(buffer.bytes()));
        });
    module.def("copy_tensors", &copy_tensors, py::arg("places"), py::arg("tensors"));
    module.def("staging_layout", &staging_layout, py::arg("plan"), py::arg("mapping"),
               py::arg("sharded"));
    module.def(
        "reserve_staging_memory",
        [](std::size_t bytes) { value_or_throw(reserve_staging_memory(bytes)); }, py::arg("bytes"),
        py::call_guard<py::gil_scoped_release>());
    module.def("release_staging_memory", &release_staging_memory,
               py::call_guard<py::gil_scoped_release>());
    module.def("staging_memory", [] { return io::StagingPool::of_process().bytes(); });
    module.def(
        "set_staging_hooks",
        [](py::function made, py::function going) {
            io::StagingPool::of_process().set_hooks(
                {to_hook(std::move(made)), to_hook(std::move(going))});
        },
        py::arg("made"), py::arg("going"));
}

} // namespace safering::python
