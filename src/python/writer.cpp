#include "python/bindings.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include <safering/storage_writer.hpp>

namespace safering::python {

namespace {

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
           const std::string& exchange, SaveLimits limits)
        : count_(std::make_shared<ProgressCount>()),
          writer_(
              std::move(path),
              {.fqn_to_index_mapping = std::move(mapping),
               .layout = sharded ? FileLayout::sharded : FileLayout::full,
               .alone = alone ? std::optional(RankOf{alone->first, alone->second}) : std::nullopt,
               .exchange = to_way(exchange),
               .metadata = {},
               .digests = digests,
               .limits = limits,
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

    // No positions: the whole plan.
    void start(const SavePlan& plan, std::optional<std::vector<std::uint32_t>> given,
               const TensorColumns& tensors) {
        std::vector<std::uint32_t> positions;
        if (given) {
            positions = std::move(*given);
        } else {
            positions.resize(plan.items.size());
            std::iota(positions.begin(), positions.end(), 0u);
        }
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
        written_->work += part.work;
        written_->backend = part.backend;
        written_->reason = std::move(part.reason);
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
        return to_dict(report);
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

    py::dict work() const { return to_dict(writer_.work()); }

    void lift_limits() { writer_.lift_limits(); }

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

// (fqn, offset, size in bytes, file name) of each result.
py::list describe_results(const py::bytes& packed) {
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

namespace {

py::list to_list(const std::vector<RankReport>& ranks) {
    py::list out;
    for (const RankReport& rank : ranks) {
        py::dict one;
        one["rank"] = rank.rank;
        one["work"] = to_dict(rank.work);
        one["backend"] = name(rank.backend);
        one["reason"] = rank.reason;
        out.append(one);
    }
    return out;
}

py::object summary_of(const std::vector<RankReport>& all) {
    if (all.empty())
        return py::none();
    const RankSummary summary = summarise(all);
    py::dict out, spreads;
    for (const RankSpread& spread : summary.spreads) {
        py::dict one;
        one["min"] = spread.min;
        one["median"] = spread.median;
        one["max"] = spread.max;
        one["max_rank"] = spread.max_rank;
        spreads[py::str(spread.field)] = one;
    }
    py::list backends;
    for (const BackendRanks& ranks : summary.backends) {
        py::dict one;
        one["backend"] = name(ranks.backend);
        one["reason"] = ranks.reason;
        one["ranks"] = ranks.ranks;
        backends.append(one);
    }
    out["total"] = to_dict(summary.total);
    out["spreads"] = spreads;
    out["backends"] = backends;
    return out;
}

} // namespace

py::dict to_dict(const SaveReport& report) {
    py::dict out;
    out["path"] = to_path(report.path);
    out["attempt"] = report.attempt;
    out["files"] = report.files;
    out["tensor_bytes"] = report.tensor_bytes;
    out["replaced"] = report.replaced;
    out["process_memory_bytes"] = report.process_memory_bytes;
    out["shared_memory_bytes"] = report.shared_memory_bytes;
    out["prepare_seconds"] = report.prepare_seconds;
    out["commit_seconds"] = report.commit_seconds;
    out["work"] = to_dict(report.work);
    out["ranks"] = to_list(report.ranks);
    out["summary"] = summary_of(report.ranks);
    out["text"] = to_text(report);
    out["file_system"] = report.file_system.type;
    out["notes"] = report.notes;
    for (const auto& [key, value] : to_dict(report.reactor))
        out[key] = value;
    return out;
}

py::dict to_dict(const WorkReport& work) {
    py::dict out;
    WorkReport::each_field([&](const char* name, auto field) { out[name] = work.*field; });
    return out;
}

void bind_writer(py::module_& module) {
    py::class_<TensorColumns>(module, "TensorColumns")
        .def(py::init<py::list, py::list, py::list, py::list>(), py::arg("addresses"),
             py::arg("dtypes"), py::arg("shapes"), py::arg("strides"))
        .def_readonly("dtypes", &TensorColumns::dtypes);
    py::class_<SaveLimits>(module, "SaveLimits")
        .def(py::init<std::uint64_t, double>(), py::arg("bytes_per_second"),
             py::arg("processor_share"));
    py::class_<Writer>(module, "Writer")
        .def(py::init<std::string, std::shared_ptr<Reactor>, FqnToIndexMapping, bool, bool,
                      std::optional<std::pair<std::uint32_t, std::uint32_t>>, std::string,
                      SaveLimits>(),
             py::arg("path"), py::arg("reactor"), py::arg("mapping"), py::arg("sharded"),
             py::arg("digests"), py::arg("alone"), py::arg("exchange"), py::arg("limits"))
        .def("prepare_global_plan", &Writer::prepare_global_plan, py::arg("plans"))
        .def("start", &Writer::start, py::arg("plan"), py::arg("positions"), py::arg("tensors"))
        .def("wait", &Writer::wait, py::arg("progress"))
        .def("results", &Writer::results)
        .def("work", &Writer::work)
        .def("decline", &Writer::decline, py::arg("plan"), py::arg("why"))
        .def("finish", &Writer::finish, py::arg("results"))
        .def("cancel", &Writer::cancel)
        .def("lift_limits", &Writer::lift_limits)
        .def("abort", &Writer::abort);
    module.def("describe_results", &describe_results, py::arg("results"));
}

} // namespace safering::python
