#include "python/bindings.hpp"

#include <algorithm>
#include <utility>

#include <safering/storage_writer.hpp>

namespace safering::python {

namespace {

SavePlan make_plan(std::uint32_t rank, const py::list& fqns, const py::list& dtypes,
                   const py::list& offsets, const py::list& sizes, const py::list& shapes) {
    SavePlan plan{.rank = rank, .items = {}, .endpoint = {}, .storage = {}};
    plan.items.resize(py::len(fqns));
    check_columns(plan.items.size(), {dtypes, offsets, sizes, shapes});
    for (std::size_t i = 0; i < plan.items.size(); ++i) {
        WriteItem& item = plan.items[i];
        item.fqn = to_text(fqns[i]);
        item.dtype = to_dtype(dtypes[i]);
        item.chunk = {to_shape(offsets[i]), to_shape(sizes[i])};
        item.size = to_shape(shapes[i]);
        item.type = item.chunk.sizes == item.size ? WriteItemType::tensor : WriteItemType::shard;
    }
    return plan;
}

// These items of a rank's whole plan.
SavePlan select(const SavePlan& plan, const std::vector<std::uint32_t>& positions) {
    SavePlan out{.rank = plan.rank, .items = {}, .endpoint = {}, .storage = plan.storage};
    out.items.reserve(positions.size());
    if (out.storage)
        out.storage->placements.clear();
    for (const std::uint32_t position : positions) {
        out.items.push_back(plan.items.at(position));
        if (out.storage)
            out.storage->placements.push_back(plan.storage->placements.at(position));
    }
    if (out.storage && out.storage->exchange)
        out.storage->exchange->positions = positions;
    return out;
}

class ViewPlanner final : public SavePlanner {
  public:
    explicit ViewPlanner(std::vector<TensorView> views) : views_(std::move(views)) {}
    // Asked once an item, in plan order.
    Result<TensorView> resolve_data(const WriteItem&) override {
        return std::move(views_[next_++]);
    }

  private:
    std::vector<TensorView> views_;
    std::size_t next_ = 0;
};

class Writer {
  public:
    Writer(std::string path, std::shared_ptr<Reactor> reactor, FqnToIndexMapping mapping,
           bool sharded, bool digests, std::optional<std::pair<std::uint32_t, std::uint32_t>> alone,
           const std::string& exchange)
        : count_(std::make_shared<ProgressCount>()),
          writer_(
              std::move(path),
              {.fqn_to_index_mapping = std::move(mapping),
               .layout = sharded ? FileLayout::sharded : FileLayout::full,
               .alone = alone ? std::optional(RankOf{alone->first, alone->second}) : std::nullopt,
               .exchange = to_way(exchange),
               .metadata = {},
               .digests = digests,
               .progress =
                   [count = count_](std::uint64_t done, std::uint64_t total) {
                       count->total = total;
                       count->done = done;
                   }},
              std::move(reactor)) {}

    // Of each rank: the attempt and its part of the layout.
    py::list prepare_global_plan(const std::vector<const SavePlan*>& plans) {
        std::string attempt;
        std::vector<std::vector<std::byte>> storage;
        {
            const py::gil_scoped_release release;
            std::vector<SavePlan> values;
            for (const SavePlan* plan : plans)
                values.push_back(*plan);
            for (const SavePlan& plan :
                 value_or_throw(writer_.prepare_global_plan(std::move(values)))) {
                attempt = plan.storage->attempt;
                storage.push_back(to_bytes(*plan.storage));
            }
        }
        py::list out;
        for (const auto& bytes : storage)
            out.append(py::make_tuple(attempt, to_bytes_object(bytes)));
        return out;
    }

    void start(const SavePlan& plan, std::vector<std::uint32_t> positions,
               const TensorColumns& tensors) {
        if (tensors.size() != positions.size() || positions.size() > plan.items.size() ||
            std::ranges::any_of(positions, [&](auto p) { return p >= plan.items.size(); }))
            throw py::value_error("the positions do not fit the plan and the tensors");
        if (running_.valid())
            throw py::value_error("a write is under way: wait for it first");
        ViewPlanner planner(tensors.views<TensorView>());
        const py::gil_scoped_release release;
        count_->done = 0;
        if (!written_)
            written_ = WriteResults{.rank = plan.rank};
        const bool first = written_->items.empty();
        if (first && positions.size() == plan.items.size()) {
            running_ = writer_.write_data(plan, planner);
        } else {
            SavePlan part = select(plan, positions);
            // Other ranks were told by the first what this one gives.
            if (!first && part.storage)
                part.storage->exchange.reset();
            running_ = writer_.write_data(part, planner);
        }
        written_->items.resize(plan.items.size());
        positions_ = std::move(positions);
    }

    void wait(const py::object& progress) {
        if (!running_.valid())
            throw py::value_error("no write is under way");
        WriteResults part = python::wait(running_, progress, *count_, [this] { writer_.cancel(); });
        for (std::size_t i = 0; i < positions_.size(); ++i)
            written_->items[positions_[i]] = std::move(part.items[i]);
        written_->attempt = std::move(part.attempt);
        written_->files = std::move(part.files);
        if (!part.pieces.empty())
            written_->pieces = std::move(part.pieces);
        if (part.exchange != ExchangeReport{})
            written_->exchange = std::move(part.exchange);
    }

    // Of all that was written since the last time.
    py::bytes results() {
        if (!written_)
            throw py::value_error("nothing was written");
        return to_bytes_object(to_bytes(*std::exchange(written_, std::nullopt)));
    }

    void decline(const SavePlan& plan, const std::string& why) {
        const py::gil_scoped_release release;
        writer_.decline(plan, why);
    }

    py::dict finish(const std::vector<py::bytes>& packed) {
        std::vector<WriteResults> results = to_results(packed);
        SaveReport report;
        {
            const py::gil_scoped_release release;
            report = value_or_throw(writer_.finish({}, std::move(results)));
        }
        py::dict out;
        out["path"] = report.path;
        out["attempt"] = report.attempt;
        out["files"] = report.files;
        out["tensor_bytes"] = report.tensor_bytes;
        out["replaced"] = report.replaced;
        out["process_memory_bytes"] = report.process_memory_bytes;
        out["shared_memory_bytes"] = report.shared_memory_bytes;
        out["file_system"] = report.file_system.type;
        out["notes"] = report.notes;
        for (const auto& [key, value] : to_dict(report.reactor))
            out[key] = value;
        return out;
    }

    // Ends what runs, and waits for the end.
    void cancel() {
        written_.reset();
        if (!running_.valid())
            return;
        const py::gil_scoped_release release;
        writer_.cancel();
        running_.wait();
        running_ = {};
    }

    void abort() {
        const py::gil_scoped_release release;
        value_or_throw(writer_.abort());
    }

  private:
    std::shared_ptr<ProgressCount> count_;
    HuggingFaceStorageWriter writer_;
    std::future<WriteResults> running_;
    std::vector<std::uint32_t> positions_; // of what runs
    std::optional<WriteResults> written_;
};

// Which positions of each plan are left when replicas are dropped; checks what create_global_plan checks.
std::vector<std::vector<std::size_t>> plan_globally(const std::vector<const SavePlan*>& plans) {
    std::vector<SavePlan> values;
    for (const SavePlan* plan : plans)
        values.push_back(*plan);
    const GlobalSavePlan global = value_or_throw(create_global_plan(std::move(values)));
    std::vector<std::vector<std::size_t>> kept(plans.size());
    for (std::size_t p = 0; p < plans.size(); ++p) {
        // What is left is in the order that it had.
        const std::vector<WriteItem>& all = plans[p]->items;
        std::size_t at = 0;
        for (const WriteItem& item : global.plans[p].items) {
            while (all[at] != item)
                ++at;
            kept[p].push_back(at++);
        }
    }
    return kept;
}

// (fqn, offset, size in bytes, file name) of each result.
py::list describe(const py::bytes& packed) {
    const WriteResults results = value_or_throw(write_results_from_bytes(to_span(packed)));
    std::vector<py::str> names;
    for (const std::string& file : results.files)
        names.emplace_back(file);
    py::list out;
    for (const WriteResult& item : results.items)
        out.append(py::make_tuple(item.index.fqn, to_tuple(item.index.offset), item.size_in_bytes,
                                  names[item.storage.file]));
    return out;
}

} // namespace

void bind_writer(py::module_& module) {
    py::class_<SavePlan>(module, "SavePlan")
        .def(py::init(&make_plan), py::arg("rank"), py::arg("fqns"), py::arg("dtypes"),
             py::arg("offsets"), py::arg("sizes"), py::arg("shapes"))
        .def("__len__", [](const SavePlan& plan) { return plan.items.size(); })
        .def_readwrite("endpoint", &SavePlan::endpoint)
        .def("set_storage", [](SavePlan& plan, const py::bytes& bytes) {
            plan.storage =
                value_or_throw(storage_plan_from_bytes(to_span(bytes), plan.items.size()));
        });
    py::class_<TensorColumns>(module, "TensorColumns")
        .def(py::init<py::list, py::list, py::list, py::list>(), py::arg("addresses"),
             py::arg("dtypes"), py::arg("shapes"), py::arg("strides"))
        .def_readonly("dtypes", &TensorColumns::dtypes);
    py::class_<Writer>(module, "Writer")
        .def(py::init<std::string, std::shared_ptr<Reactor>, FqnToIndexMapping, bool, bool,
                      std::optional<std::pair<std::uint32_t, std::uint32_t>>, std::string>(),
             py::arg("path"), py::arg("reactor"), py::arg("mapping"), py::arg("sharded"),
             py::arg("digests"), py::arg("alone"), py::arg("exchange"))
        .def("prepare_global_plan", &Writer::prepare_global_plan, py::arg("plans"))
        .def("start", &Writer::start, py::arg("plan"), py::arg("positions"), py::arg("tensors"))
        .def("wait", &Writer::wait, py::arg("progress"))
        .def("results", &Writer::results)
        .def("decline", &Writer::decline, py::arg("plan"), py::arg("why"))
        .def("finish", &Writer::finish, py::arg("results"))
        .def("cancel", &Writer::cancel)
        .def("abort", &Writer::abort);
    module.def("plan_globally", &plan_globally, py::arg("plans"),
               py::call_guard<py::gil_scoped_release>());
    module.def("describe_results", &describe, py::arg("results"));
}

} // namespace safering::python
