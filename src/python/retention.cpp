// The checkpoints of a run: records as dicts, which safering/_steps.py makes into dataclasses.
#include "python/bindings.hpp"

#include <safering/retention.hpp>

namespace safering::python {

namespace {

py::dict checkpoint_dict(const StepCheckpoint& checkpoint) {
    py::list others;
    for (const std::string& other : checkpoint.others)
        others.append(to_path(other));
    py::dict out;
    out["name"] = to_path(checkpoint.name);
    out["prefix"] = to_path(checkpoint.prefix);
    out["step"] = checkpoint.step;
    out["path"] = to_path(checkpoint.path);
    out["state"] = std::string(name(checkpoint.state));
    out["attempt"] = checkpoint.attempt;
    out["saved_ms"] = checkpoint.saved_ms;
    out["files"] = checkpoint.files;
    out["bytes"] = checkpoint.bytes;
    out["reason"] = checkpoint.reason;
    out["others"] = others;
    return out;
}

template <typename Work>
auto without_gil(Work&& work) {
    const py::gil_scoped_release release;
    return value_or_throw(work());
}

py::list list(const std::string& directory, Reactor& reactor) {
    const CheckpointList found = without_gil([&] { return list_checkpoints(directory, reactor); });
    py::list out;
    for (const StepCheckpoint& checkpoint : found.checkpoints)
        out.append(checkpoint_dict(checkpoint));
    return out;
}

py::object find_latest(const std::string& directory, const std::string& prefix, Reactor& reactor) {
    const auto found = without_gil([&] { return latest(directory, reactor, prefix); });
    return found ? py::object(checkpoint_dict(*found)) : py::none();
}

py::tuple prune_directory(const std::string& directory, std::uint64_t keep_last,
                          std::uint64_t keep_every, const std::string& prefix, bool with_others,
                          bool dry_run, Reactor& reactor) {
    RetentionPolicy policy{.keep_last = keep_last, .keep_every = keep_every, .prefix = prefix};
    if (with_others)
        policy.others = RetentionPolicy::Others::remove;
    const PruneReport report = without_gil(
        [&] { return prune(directory, reactor, policy, dry_run ? DryRun::yes : DryRun::no); });
    py::list removed;
    for (const StepCheckpoint& checkpoint : report.removed)
        removed.append(checkpoint_dict(checkpoint));
    py::list failures;
    for (const Error& failure : report.failures)
        failures.append(failure.message());
    return py::make_tuple(removed, failures);
}

py::dict recover(const std::string& path, bool all_attempts, Reactor& reactor) {
    const RecoverReport report = without_gil([&] {
        return recover_checkpoint(path, reactor,
                                  all_attempts ? StaleAttempts::all : StaleAttempts::overtaken);
    });
    const auto names = [](const std::vector<Leftover>& leftovers) {
        py::list out;
        for (const Leftover& leftover : leftovers)
            out.append(to_path(leftover.name));
        return out;
    };
    py::list failures;
    for (const Error& failure : report.failures)
        failures.append(failure.message());
    py::dict out;
    out["switch_finished"] = report.switch_finished;
    out["removed"] = names(report.removed);
    out["left"] = names(report.left);
    out["failures"] = failures;
    return out;
}

} // namespace

void bind_retention(py::module_& module) {
    module.def("list_checkpoints", &list, py::arg("directory"), py::arg("reactor"));
    module.def("latest", &find_latest, py::arg("directory"), py::arg("prefix"), py::arg("reactor"));
    module.def(
        "set_latest",
        [](const std::string& checkpoint, Reactor& reactor) {
            without_gil([&] { return set_latest(checkpoint, reactor); });
        },
        py::arg("checkpoint"), py::arg("reactor"));
    module.def("prune", &prune_directory, py::arg("directory"), py::arg("keep_last"),
               py::arg("keep_every"), py::arg("prefix"), py::arg("with_others"), py::arg("dry_run"),
               py::arg("reactor"));
    module.def("recover", &recover, py::arg("path"), py::arg("all_attempts"), py::arg("reactor"));
}

} // namespace safering::python
