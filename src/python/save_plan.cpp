// Plans as they are made from columns, travel between ranks as bytes, and lose what other ranks save.
#include "python/bindings.hpp"

#include <safering/planner.hpp>

namespace safering::python {

namespace {

SavePlan make_plan(std::uint32_t rank, const py::list& fqns, const py::list& dtypes,
                   const py::list& offsets, const py::list& sizes, const py::list& shapes) {
    SavePlan plan{.rank = rank, .items = {}, .endpoint = {}, .storage = {}};
    plan.items.resize(py::len(fqns));
    check_columns(plan.items.size(), {dtypes, offsets, sizes, shapes});
    TensorNames names;
    for (std::size_t i = 0; i < plan.items.size(); ++i) {
        WriteItem& item = plan.items[i];
        item.fqn = names.add(to_text(fqns[i]));
        item.dtype = to_dtype(dtypes[i]);
        item.chunk.sizes = to_shape(sizes[i]);
        if (offsets[i].is_none()) { // a whole tensor
            item.size = item.chunk.sizes;
            item.chunk.offsets.resize(item.size.size());
            continue;
        }
        item.chunk.offsets = to_shape(offsets[i]);
        item.size = to_shape(shapes[i]);
        item.type = item.chunk.sizes == item.size ? WriteItemType::tensor : WriteItemType::shard;
    }
    return plan;
}

// The items at these positions, without a storage plan, which was parallel to the whole.
SavePlan keep(const SavePlan& plan, const std::vector<std::size_t>& positions) {
    SavePlan out{.rank = plan.rank, .items = {}, .endpoint = plan.endpoint, .storage = {}};
    out.items.reserve(positions.size());
    for (const std::size_t position : positions)
        out.items.push_back(plan.items.at(position));
    return out;
}

// (fqn, dtype, offsets, sizes, shape) of each item.
py::list describe_plan(const SavePlan& plan) {
    py::list out;
    for (const WriteItem& item : plan.items)
        out.append(py::make_tuple(item.fqn, static_cast<int>(item.dtype),
                                  to_tuple(item.chunk.offsets), to_tuple(item.chunk.sizes),
                                  to_tuple(item.size)));
    return out;
}

// Which positions of each plan are left when replicas are dropped, nothing where all are; checks what
// create_global_plan checks.
std::vector<std::optional<std::vector<std::size_t>>>
plan_globally(const std::vector<const SavePlan*>& plans) {
    std::vector<SavePlan> values;
    for (const SavePlan* plan : plans)
        values.push_back(*plan);
    const GlobalSavePlan global = value_or_throw(create_global_plan(std::move(values)));
    std::vector<std::optional<std::vector<std::size_t>>> kept(plans.size());
    for (std::size_t p = 0; p < plans.size(); ++p) {
        if (global.plans[p].items.size() == plans[p]->items.size())
            continue;
        kept[p].emplace();
        // What is left is in the order that it had.
        const std::vector<WriteItem>& all = plans[p]->items;
        std::size_t at = 0;
        for (const WriteItem& item : global.plans[p].items) {
            while (all[at] != item)
                ++at;
            kept[p]->push_back(at++);
        }
    }
    return kept;
}

} // namespace

void bind_save_plan(py::module_& module) {
    py::class_<SavePlan>(module, "SavePlan")
        .def(py::init(&make_plan), py::arg("rank"), py::arg("fqns"), py::arg("dtypes"),
             py::arg("offsets"), py::arg("sizes"), py::arg("shapes"))
        .def(py::pickle([](const SavePlan& plan) { return to_bytes_object(to_bytes(plan)); },
                        [](const py::bytes& bytes) {
                            return value_or_throw(save_plan_from_bytes(to_span(bytes)));
                        }))
        .def("keep", &keep, py::arg("positions"))
        .def("describe", &describe_plan)
        .def_readwrite("rank", &SavePlan::rank)
        .def("__len__", [](const SavePlan& plan) { return plan.items.size(); })
        .def_readwrite("endpoint", &SavePlan::endpoint)
        .def("set_storage", [](SavePlan& plan, const py::bytes& bytes) {
            plan.storage =
                value_or_throw(storage_plan_from_bytes(to_span(bytes), plan.items.size()));
        });
    module.def("plan_globally", &plan_globally, py::arg("plans"),
               py::call_guard<py::gil_scoped_release>());
}

} // namespace safering::python
