#include "python/bindings.hpp"

#include <algorithm>
#include <limits>
#include <utility>
#include <variant>

#include <safering/async_saver.hpp>

namespace safering::python {

namespace {

py::list to_list(const std::vector<std::vector<std::byte>>& parts) {
    py::list out;
    for (const auto& part : parts)
        out.append(to_bytes_object(part));
    return out;
}

py::list to_paths(const std::vector<std::string>& paths) {
    py::list out;
    for (const std::string& path : paths)
        out.append(to_path(path));
    return out;
}

std::vector<std::byte> to_vector(const py::bytes& bytes) {
    const auto span = to_span(bytes);
    return {span.begin(), span.end()};
}

// An object with rank, ranks, gather and scatter, of Python's. Used on threads that do not hold the GIL.
class PythonCollectives final : public Collectives {
  public:
    explicit PythonCollectives(py::object object)
        : object_(std::move(object)), rank_(object_.attr("rank").cast<std::uint32_t>()),
          ranks_(object_.attr("ranks").cast<std::uint32_t>()) {}
    ~PythonCollectives() override {
        const py::gil_scoped_acquire acquire;
        object_ = py::object();
    }
    std::uint32_t rank() const override { return rank_; }
    std::uint32_t ranks() const override { return ranks_; }
    Result<std::vector<std::vector<std::byte>>> gather(std::vector<std::byte> own) override {
        return call([&] {
            std::vector<std::vector<std::byte>> all;
            for (const py::handle one : object_.attr("gather")(to_bytes_object(own)))
                all.push_back(to_vector(py::cast<py::bytes>(one)));
            return all;
        });
    }
    Result<std::vector<std::byte>> scatter(std::vector<std::vector<std::byte>> parts) override {
        return call([&] {
            return to_vector(py::cast<py::bytes>(object_.attr("scatter")(to_list(parts))));
        });
    }
    /// Raises what came while it spoke and is no failure of speaking (Ctrl-C).
    void raise_interrupt() {
        if (auto raised = std::exchange(interrupt_, std::nullopt))
            throw std::move(*raised);
    }

  private:
    // What is no exception of Python's is turned into an Error where the saver calls.
    template <typename F>
    Result<std::invoke_result_t<F>> call(F&& f) {
        const py::gil_scoped_acquire acquire;
        try {
            return f();
        } catch (const py::error_already_set& error) {
            if (!error.matches(PyExc_Exception))
                interrupt_ = error;
            return fail(std::make_error_code(std::errc::connection_aborted),
                        "save: speak to the other ranks", error.what());
        }
    }

    py::object object_;
    std::uint32_t rank_;
    std::uint32_t ranks_;
    std::optional<py::error_already_set> interrupt_;
};

std::shared_ptr<PythonCollectives> to_collectives(const py::object& object) {
    return object.is_none() ? nullptr : std::make_shared<PythonCollectives>(object);
}

// A save that was asked for.
class PendingSave {
  public:
    explicit PendingSave(std::future<SaveReport> future) : future_(future.share()) {}

    bool wait(std::optional<double> seconds) const {
        using Clock = std::chrono::steady_clock;
        // More than a machine's life is for ever.
        const auto until = seconds && *seconds < 1e9
                               ? Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                                    std::chrono::duration<double>(*seconds))
                               : Clock::time_point::max();
        for (;;) {
            const auto step = std::min(until, Clock::now() + std::chrono::milliseconds(50));
            {
                const py::gil_scoped_release release;
                if (future_.wait_until(step) == std::future_status::ready)
                    return true;
            }
            if (PyErr_CheckSignals() != 0)
                throw py::error_already_set();
            if (Clock::now() >= until)
                return false;
        }
    }
    py::dict report() const { return to_dict(future_.get()); }

  private:
    std::shared_future<SaveReport> future_;
};

// Its threads may need the GIL to end.
void destroy(AsyncSaver* saver) {
    const py::gil_scoped_release release;
    delete saver;
}

// Each call holds the saver, which another thread may close meanwhile, and gives it up when it has the GIL again.
class Saver {
  public:
    Saver(std::shared_ptr<Reactor> reactor, FqnToIndexMapping mapping, bool sharded, bool digests,
          const std::string& exchange, SaveLimits limits, const py::object& foreground,
          const py::object& background)
        : foreground_(to_collectives(foreground)) {
        AsyncSaverOptions options{
            .writer = {.fqn_to_index_mapping = std::move(mapping),
                       .layout = sharded ? FileLayout::sharded : FileLayout::full,
                       .exchange = to_way(exchange),
                       .digests = digests,
                       .limits = limits},
            .reactor = std::move(reactor),
            .foreground = foreground_,
            .background = to_collectives(background)};
        const auto make = [&] {
            const py::gil_scoped_release release;
            return new AsyncSaver(std::move(options));
        };
        saver_ = std::shared_ptr<AsyncSaver>(make(), destroy);
    }

    // Of use to other threads until all saves have ended.
    void close() {
        wait(std::numeric_limits<double>::infinity());
        saver_.reset();
    }

    // `plan`: a SavePlan, or text that says why there is none. `fill(positions, addresses)`.
    PendingSave save(std::string path, const std::variant<const SavePlan*, std::string>& plan,
                     const py::function& fill) {
        const auto run_fill = [&](std::span<const std::uint32_t> items,
                                  std::span<std::byte* const> places) -> Result<void> {
            const py::gil_scoped_acquire acquire;
            try {
                py::list positions, addresses;
                for (const std::uint32_t item : items)
                    positions.append(item);
                for (const std::byte* place : places)
                    addresses.append(reinterpret_cast<std::uintptr_t>(place));
                fill(positions, addresses);
                return {};
            } catch (py::error_already_set& error) {
                if (!error.matches(PyExc_Exception))
                    throw; // Ctrl-C is the caller's
                Error lost{.code = std::make_error_code(std::errc::io_error),
                           .operation = "stage data",
                           .detail = error.what()};
                return std::unexpected(std::move(lost));
            }
        };
        Result<SavePlan> own;
        if (const auto* given = std::get_if<const SavePlan*>(&plan))
            own = **given;
        else
            own = fail(std::make_error_code(std::errc::invalid_argument), "plan a save",
                       std::get<std::string>(plan));
        const std::shared_ptr<AsyncSaver> saver = running();
        auto begun = [&] {
            const py::gil_scoped_release release;
            return saver->save(std::move(path), std::move(own), run_fill);
        }();
        if (foreground_)
            foreground_->raise_interrupt();
        return PendingSave(value_or_throw(std::move(begun)));
    }
    // The saver's thread may hold the saver's lock while it waits for the GIL: staging memory that goes is
    // unpinned in Python.
    void cancel() {
        const std::shared_ptr<AsyncSaver> saver = running();
        const py::gil_scoped_release release;
        saver->cancel();
    }
    void lift_limits() {
        const std::shared_ptr<AsyncSaver> saver = running();
        const py::gil_scoped_release release;
        saver->lift_limits();
    }
    bool wait(double seconds) {
        const std::shared_ptr<AsyncSaver> saver = saver_;
        if (!saver)
            return true;
        const py::gil_scoped_release release;
        return saver->wait(std::chrono::steady_clock::now() + to_duration(seconds));
    }
    py::tuple emergency_flush(double seconds) {
        const std::shared_ptr<AsyncSaver> saver = running();
        AsyncSaver::Flushed flushed;
        {
            const py::gil_scoped_release release;
            flushed = saver->emergency_flush(to_duration(seconds));
        }
        return py::make_tuple(to_paths(flushed.saved), to_paths(flushed.abandoned));
    }

  private:
    static std::chrono::steady_clock::duration to_duration(double seconds) {
        return std::chrono::duration_cast<std::chrono::steady_clock::duration>(
            std::chrono::duration<double>(std::clamp(seconds, 0.0, 1e8)));
    }
    std::shared_ptr<AsyncSaver> running() const {
        if (!saver_)
            throw py::value_error("the saver is closed");
        return saver_;
    }

    std::shared_ptr<PythonCollectives> foreground_;
    std::shared_ptr<AsyncSaver> saver_;
};

} // namespace

void bind_async_saver(py::module_& module) {
    py::class_<PendingSave>(module, "PendingSave")
        .def("wait", &PendingSave::wait, py::arg("seconds"))
        .def("report", &PendingSave::report);
    py::class_<Saver>(module, "AsyncSaver")
        .def(py::init([](std::shared_ptr<Reactor> reactor, FqnToIndexMapping mapping, bool sharded,
                         bool digests, const std::string& exchange, std::uint64_t bytes_per_second,
                         double processor_share, const py::object& foreground,
                         const py::object& background) {
                 return std::make_unique<Saver>(
                     std::move(reactor), std::move(mapping), sharded, digests, exchange,
                     SaveLimits{bytes_per_second, processor_share}, foreground, background);
             }),
             py::arg("reactor"), py::arg("mapping"), py::arg("sharded"), py::arg("digests"),
             py::arg("exchange"), py::arg("bytes_per_second"), py::arg("processor_share"),
             py::arg("foreground"), py::arg("background"))
        .def("save", &Saver::save, py::arg("path"), py::arg("plan"), py::arg("fill"))
        .def("cancel", &Saver::cancel)
        .def("lift_limits", &Saver::lift_limits)
        .def("wait", &Saver::wait, py::arg("seconds"))
        .def("emergency_flush", &Saver::emergency_flush, py::arg("seconds"))
        .def("close", &Saver::close);
}

} // namespace safering::python
