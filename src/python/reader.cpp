#include "python/bindings.hpp"

#include <safering/planner.hpp>
#include <safering/storage_reader.hpp>

namespace safering::python {

namespace {

Verification to_verification(const std::string& name) {
    if (name == "off")
        return Verification::off;
    if (name == "covered")
        return Verification::covered;
    if (name == "all")
        return Verification::all;
    throw py::value_error("verification must be 'off', 'covered' or 'all', not '" + name + "'");
}

class Reader {
  public:
    Reader(std::string path, std::shared_ptr<Reactor> reactor, const std::string& verification,
           bool strict, const std::string& exchange)
        : count_(std::make_shared<ProgressCount>()),
          reader_(std::move(path),
                  {.verification = to_verification(verification),
                   .strict = strict,
                   .exchange = to_way(exchange),
                   .progress =
                       [count = count_](std::uint64_t done, std::uint64_t total) {
                           count->total = total;
                           count->done = done;
                       }},
                  std::move(reactor)) {}

    // (files, [(fqn, dtype, size, [(offsets, sizes, file), ...]), ...])
    py::tuple read_metadata() {
        {
            const py::gil_scoped_release release;
            metadata_ = value_or_throw(reader_.read_metadata());
        }
        py::list files;
        for (const std::string& file : metadata_.files)
            files.append(to_path(file));
        py::list tensors;
        for (const auto& [fqn, tensor] : metadata_.tensors) {
            py::list chunks;
            for (std::size_t i = 0; i < tensor.chunks.size(); ++i)
                chunks.append(py::make_tuple(to_tuple(tensor.chunks[i].offsets),
                                             to_tuple(tensor.chunks[i].sizes),
                                             tensor.storage[i].file));
            tensors.append(
                py::make_tuple(fqn, static_cast<int>(tensor.dtype), to_tuple(tensor.size), chunks));
        }
        return py::make_tuple(files, tensors);
    }

    // As read_metadata, without telling what is there.
    void open() {
        const py::gil_scoped_release release;
        metadata_ = value_or_throw(reader_.read_metadata());
    }

    std::size_t size() const { return metadata_.tensors.size(); }

    // (dtype or -1, size) of each tensor; the size only where it is another than expected.
    py::tuple stored(const py::list& fqns, const py::list& sizes) const {
        check_columns(py::len(fqns), {sizes});
        py::list codes, others;
        for (std::size_t i = 0; i < py::len(fqns); ++i) {
            const auto found = metadata_.tensors.find(to_text(fqns[i]));
            if (found == metadata_.tensors.end()) {
                codes.append(-1);
                others.append(py::none());
                continue;
            }
            codes.append(static_cast<int>(found->second.dtype));
            if (found->second.size == to_shape(sizes[i]))
                others.append(py::none());
            else
                others.append(to_tuple(found->second.size));
        }
        return py::make_tuple(codes, others);
    }

    // {file name: {key: value}}
    py::dict file_metadata() const {
        py::dict out;
        for (const auto& [file, entries] : reader_.file_metadata()) {
            py::dict one;
            for (const auto& [key, value] : entries)
                one[py::str(key)] = value;
            out[py::str(file)] = one;
        }
        return out;
    }

    // What this rank would read, for prepare_global_plan; also where that is nothing.
    py::bytes prepare_local_plan(const py::list& fqns, const py::list& chunk_offsets,
                                 const py::list& chunk_hints, const py::list& storage_offsets,
                                 const py::list& lengths) {
        LoadPlan plan = make_plan(fqns, chunk_offsets, chunk_hints, storage_offsets, lengths);
        std::vector<std::byte> offer;
        {
            const py::gil_scoped_release release;
            offer = offer_of(std::move(plan));
        }
        return to_bytes_object(offer);
    }

    // Of each rank its part in the exchange, or None.
    py::list prepare_global_plan(const std::vector<std::optional<py::bytes>>& offers) {
        std::vector<LoadPlan> plans;
        for (const std::optional<py::bytes>& offer : offers)
            plans.push_back(offer ? value_or_throw(load_plan_from_bytes(to_span(*offer)))
                                  : LoadPlan());
        py::list out;
        for (const LoadPlan& plan : value_or_throw(reader_.prepare_global_plan(std::move(plans))))
            out.append(plan.exchange ? py::object(to_bytes_object(to_bytes(plan))) : py::none());
        return out;
    }

    void start(const py::list& fqns, const py::list& chunk_offsets, const py::list& chunk_hints,
               const py::list& storage_offsets, const py::list& lengths,
               const TensorColumns& tensors, const std::optional<py::bytes>& exchange) {
        if (running_.valid())
            throw py::value_error("a load is under way: wait for it first");
        LoadPlan plan = make_plan(fqns, chunk_offsets, chunk_hints, storage_offsets, lengths);
        check_columns(plan.items.size(), {tensors.addresses});
        if (exchange)
            plan.exchange = value_or_throw(load_plan_from_bytes(to_span(*exchange))).exchange;
        DestinationPlanner planner(tensors.views<MutableTensorView>());
        const py::gil_scoped_release release;
        count_->done = 0;
        // The reader keeps what it borrows of plan and planner until the load has ended.
        plan_ = std::move(plan);
        planner_.emplace(std::move(planner));
        running_ = reader_.async_read_data(plan_, *planner_);
    }

    // Boxes of tensors, each of the stored dtype, from all the chunks that they are in.
    void start_boxes(const py::list& fqns, const py::list& offsets, const py::list& sizes,
                     const TensorColumns& tensors, const std::optional<py::bytes>& exchange) {
        if (running_.valid())
            throw py::value_error("a load is under way: wait for it first");
        check_columns(py::len(fqns), {tensors.addresses});
        std::vector<LocalDestination> boxes =
            make_boxes(fqns, offsets, sizes, tensors.views<MutableTensorView>());
        std::optional<LoadExchange> part;
        if (exchange)
            part = value_or_throw(load_plan_from_bytes(to_span(*exchange))).exchange;
        const py::gil_scoped_release release;
        count_->done = 0;
        boxes_.emplace(std::move(boxes));
        plan_ = value_or_throw(boxes_->create_local_plan(metadata_));
        plan_.exchange = std::move(part);
        running_ = reader_.async_read_data(plan_, *boxes_);
    }

    // prepare_local_plan for boxes of these shapes.
    py::bytes offer_boxes(const py::list& fqns, const py::list& offsets, const py::list& sizes,
                          const py::list& shapes) {
        check_columns(py::len(fqns), {shapes});
        std::vector<MutableTensorView> views(py::len(shapes));
        for (std::size_t i = 0; i < views.size(); ++i)
            views[i].shape = to_shape(shapes[i]);
        std::vector<LocalDestination> boxes = make_boxes(fqns, offsets, sizes, std::move(views));
        for (LocalDestination& box : boxes)
            if (const auto found = metadata_.tensors.find(box.fqn);
                found != metadata_.tensors.end())
                box.data.dtype = found->second.dtype;
        std::vector<std::byte> offer;
        {
            const py::gil_scoped_release release;
            const DefaultLoadPlanner planner(std::move(boxes));
            offer = offer_of(value_or_throw(planner.create_local_plan(metadata_)));
        }
        return to_bytes_object(offer);
    }

    py::dict wait(const py::object& progress) {
        if (!running_.valid())
            throw py::value_error("no load is under way");
        const LoadReport report =
            python::wait(running_, progress, *count_, [this] { reader_.cancel(); });
        py::dict out;
        out["tensor_bytes"] = report.tensor_bytes;
        out["read_bytes"] = report.read_bytes;
        out["verified_bytes"] = report.verified_bytes;
        out["process_memory_bytes"] = report.exchange.process_memory_bytes;
        out["shared_memory_bytes"] = report.exchange.shared_memory_bytes;
        out["work"] = to_dict(report.work);
        out["notes"] = report.notes;
        for (const auto& [key, value] : to_dict(report.reactor))
            out[key] = value;
        return out;
    }

    // Ends what runs, and waits for the end: the tensors are the caller's alone then.
    void cancel() {
        if (!running_.valid())
            return;
        const py::gil_scoped_release release;
        reader_.cancel();
        running_.wait();
        running_ = {};
    }

    void decline(const py::bytes& exchange, const std::string& why) {
        const LoadPlan plan = value_or_throw(load_plan_from_bytes(to_span(exchange)));
        const py::gil_scoped_release release;
        reader_.decline(plan, why);
    }

  private:
    std::vector<std::byte> offer_of(LoadPlan plan) {
        plan = value_or_throw(reader_.prepare_local_plan(std::move(plan)));
        plan.items.clear(); // a rank's own business, or on their way by themselves
        return to_bytes(plan);
    }

    // Offsets of None: whole tensors.
    static std::vector<LocalDestination> make_boxes(const py::list& fqns, const py::list& offsets,
                                                    const py::list& sizes,
                                                    std::vector<MutableTensorView> views) {
        std::vector<LocalDestination> boxes(py::len(fqns));
        check_columns(boxes.size(), {offsets, sizes});
        TensorNames names;
        for (std::size_t i = 0; i < boxes.size(); ++i) {
            boxes[i].fqn = names.add(to_text(fqns[i]));
            boxes[i].data = std::move(views[i]);
            if (offsets[i].is_none())
                continue;
            boxes[i].offsets = to_shape(offsets[i]);
            boxes[i].size = to_shape(sizes[i]);
        }
        return boxes;
    }

    LoadPlan make_plan(const py::list& fqns, const py::list& chunk_offsets,
                       const py::list& chunk_hints, const py::list& storage_offsets,
                       const py::list& lengths) const {
        LoadPlan plan;
        plan.items.resize(py::len(fqns));
        check_columns(plan.items.size(), {chunk_offsets, chunk_hints, storage_offsets, lengths});
        TensorNames names;
        for (std::size_t i = 0; i < plan.items.size(); ++i) {
            ReadItem& item = plan.items[i];
            item.fqn = names.add(to_text(fqns[i]));
            item.chunk = find_chunk(item.fqn, to_shape(chunk_offsets[i]), chunk_hints[i]);
            item.storage_offsets = to_shape(storage_offsets[i]);
            item.lengths = to_shape(lengths[i]);
        }
        return plan;
    }

    // The hint is the chunk's number in the metadata, where DCP's planner knows it.
    std::uint32_t find_chunk(std::string_view fqn, const Shape& offsets, py::handle hint) const {
        const auto missing = [&](std::string detail) {
            return Exception({.code = Errc::checkpoint_tensor_missing,
                              .operation = "read data",
                              .file = reader_.path(),
                              .tensor = std::string(fqn),
                              .detail = std::move(detail)});
        };
        const auto found = metadata_.tensors.find(fqn);
        if (found == metadata_.tensors.end())
            throw missing("the checkpoint does not hold it");
        const auto& chunks = found->second.chunks;
        const auto is_at = [&](std::size_t i) {
            return i < chunks.size() && chunks[i].offsets == offsets;
        };
        if (!hint.is_none())
            if (const auto i = py::cast<std::size_t>(hint); is_at(i))
                return static_cast<std::uint32_t>(i);
        for (std::size_t i = 0; i < chunks.size(); ++i)
            if (is_at(i))
                return static_cast<std::uint32_t>(i);
        throw missing("no stored chunk begins there");
    }

    std::shared_ptr<ProgressCount> count_;
    Metadata metadata_;
    LoadPlan plan_;
    std::optional<DestinationPlanner> planner_;
    std::optional<DefaultLoadPlanner> boxes_;
    HuggingFaceStorageReader reader_;
    std::future<LoadReport> running_;
};

} // namespace

void bind_reader(py::module_& module) {
    py::class_<Reader>(module, "Reader")
        .def(py::init<std::string, std::shared_ptr<Reactor>, const std::string&, bool,
                      const std::string&>(),
             py::arg("path"), py::arg("reactor"), py::arg("verification"), py::arg("strict"),
             py::arg("exchange"))
        .def("read_metadata", &Reader::read_metadata)
        .def("open", &Reader::open)
        .def("__len__", &Reader::size)
        .def("stored", &Reader::stored, py::arg("fqns"), py::arg("sizes"))
        .def("start_boxes", &Reader::start_boxes, py::arg("fqns"), py::arg("offsets"),
             py::arg("sizes"), py::arg("tensors"), py::arg("exchange"))
        .def("offer_boxes", &Reader::offer_boxes, py::arg("fqns"), py::arg("offsets"),
             py::arg("sizes"), py::arg("shapes"))
        .def("file_metadata", &Reader::file_metadata)
        .def("prepare_local_plan", &Reader::prepare_local_plan, py::arg("fqns"),
             py::arg("chunk_offsets"), py::arg("chunk_hints"), py::arg("storage_offsets"),
             py::arg("lengths"))
        .def("prepare_global_plan", &Reader::prepare_global_plan, py::arg("offers"))
        .def("decline", &Reader::decline, py::arg("exchange"), py::arg("why"))
        .def("start", &Reader::start, py::arg("fqns"), py::arg("chunk_offsets"),
             py::arg("chunk_hints"), py::arg("storage_offsets"), py::arg("lengths"),
             py::arg("tensors"), py::arg("exchange"))
        .def("wait", &Reader::wait, py::arg("progress"))
        .def("cancel", &Reader::cancel);
}

} // namespace safering::python
