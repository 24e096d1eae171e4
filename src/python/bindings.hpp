// What the parts of the module share: Python's lists of numbers -> plans and views, waiting without the GIL,
// errors. The module knows neither torch nor numpy: tensors come as addresses, shapes and strides, and whoever
// calls keeps them alive until wait() has returned.
#pragma once

#include <atomic>
#include <chrono>
#include <exception>
#include <future>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <safering/error.hpp>
#include <safering/plan.hpp>
#include <safering/planner.hpp>
#include <safering/reactor.hpp>
#include <safering/storage_writer.hpp>

// To a str, as std::string goes.
template <>
struct pybind11::detail::type_caster<safering::TensorName> {
    static constexpr auto name = const_name("str");
    static handle cast(const safering::TensorName& name, return_value_policy policy,
                       handle parent) {
        return make_caster<std::string_view>::cast(name.view(), policy, parent);
    }
};

namespace safering::python {

namespace py = pybind11;

void bind_reactor(py::module_& module);
void bind_save_plan(py::module_& module);
void bind_writer(py::module_& module);
void bind_reader(py::module_& module);
void bind_files(py::module_& module);
void bind_retention(py::module_& module);
void bind_staging(py::module_& module);
void bind_async_saver(py::module_& module);
void bind_stored_file(py::module_& module);
void bind_any_file(py::module_& module);

/// A tuple (or any sequence) of ints, as torch.Size is one.
Shape to_shape(py::handle numbers);
Strides to_strides(py::handle numbers);
py::tuple to_tuple(const Shape& shape);
Dtype to_dtype(py::handle code);
ExchangeWay to_way(const std::string& text);
/// UTF-8, borrowed from the str; one that holds lone surrogates is an error that says so.
std::string_view to_text(py::handle text);
/// A path as Python has it. It need not be UTF-8, like any name of the system's; the other way round it comes as bytes.
py::object to_path(const std::string& path);
std::span<const std::byte> to_span(const py::bytes& bytes);
py::bytes to_bytes_object(const std::vector<std::byte>& bytes);
std::vector<WriteResults> to_results(const std::vector<py::bytes>& packed);
py::dict to_dict(const ReactorInfo& info);
py::dict to_dict(const SaveReport& report);
py::dict to_dict(const WorkReport& work);
ExchangeWay to_way(const std::string& text);

/// The columns of a call must be equally long.
void check_columns(std::size_t count, std::initializer_list<py::sequence> columns);

/// Tensors in memory, column by column.
struct TensorColumns {
    py::list addresses;
    py::list dtypes;
    py::list shapes;
    py::list strides;

    std::size_t size() const { return py::len(addresses); }
    template <typename View>
    std::vector<View> views() const {
        check_columns(size(), {dtypes, shapes, strides});
        std::vector<View> out(size());
        for (std::size_t i = 0; i < out.size(); ++i) {
            out[i].data =
                reinterpret_cast<decltype(out[i].data)>(py::cast<std::uintptr_t>(addresses[i]));
            out[i].dtype = to_dtype(dtypes[i]);
            out[i].shape = to_shape(shapes[i]);
            out[i].strides = to_strides(strides[i]);
        }
        return out;
    }
};

/// Destinations that are known before the load.
class DestinationPlanner final : public LoadPlanner {
  public:
    explicit DestinationPlanner(std::vector<MutableTensorView> views) : views_(std::move(views)) {}
    // Asked once an item, in plan order.
    Result<MutableTensorView> resolve_tensor(const ReadItem&) override {
        return std::move(views_[next_++]);
    }

  private:
    std::vector<MutableTensorView> views_;
    std::size_t next_ = 0;
};

/// Bytes done and in all, counted on the reactor's thread and told on the waiting one.
struct ProgressCount {
    std::atomic<std::uint64_t> done = 0;
    std::atomic<std::uint64_t> total = 0;
};

/// The future's value. The GIL is free meanwhile. A signal's exception (Ctrl-C) or one of the callback's ends
/// the job: `cancel` is called, the end awaited (memory is borrowed until then), and the exception raised.
template <typename T, typename Cancel>
T wait(std::future<T>& future, const py::object& progress, const ProgressCount& count,
       Cancel cancel) {
    using namespace std::chrono_literals;
    std::optional<py::error_already_set> raised;
    const auto ready = [&] {
        const py::gil_scoped_release release;
        return future.wait_for(50ms) == std::future_status::ready;
    };
    const auto tell = [&] {
        if (!progress.is_none() && !raised)
            progress(count.done.load(), count.total.load());
    };
    while (!ready()) {
        if (raised)
            continue;
        try {
            if (PyErr_CheckSignals() != 0)
                throw py::error_already_set();
            tell();
        } catch (py::error_already_set& error) {
            raised.emplace(std::move(error));
            cancel();
        }
    }
    if (raised) {
        future = {}; // what it ended with follows from the cancel
        throw std::move(*raised);
    }
    T value = future.get();
    tell();
    return value;
}

} // namespace safering::python
