// Real saves, replacements, loads and conversions, to be tried with faults.
#include <fmt/format.h>

#include "../crash/scenarios.hpp"
#include "try_faults.hpp"

namespace safering::test {

namespace {

using Run = std::function<Result<std::vector<std::string>>(const Stage&)>;
using Notes = std::vector<std::string>;

const std::string path = "/ckpt/step";
const WriterOptions sharded{.layout = FileLayout::sharded};

WriterOptions both_files() {
    return two_files(tiny_model(0));
}

Result<Notes> notes_of(Result<SaveReport> report) {
    if (!report)
        return std::unexpected(std::move(report.error()));
    return std::move(report->notes);
}

// What it leaves is learned from a run without faults.
FaultScenario scenario(std::string name, const std::shared_ptr<SimulatedDisk>& before,
                       std::optional<Expected> old, const Model& fresh, Run run,
                       const std::string& target = path) {
    Stage stage;
    stage.set(before->now());
    if (auto done = run(stage); !done)
        throw Exception(done.error());
    Expectations expectations{.path = target,
                              .old = std::move(old),
                              .fresh = expected_on(*stage.disk, fresh, target),
                              .save_again = {}};
    expectations.beside = stage.names("/ckpt");
    return {std::move(name), before->now(), std::move(expectations), false, false, std::move(run)};
}

FaultScenario saving(std::string name, const std::shared_ptr<SimulatedDisk>& before,
                     Sharding sharding, const WriterOptions& options) {
    std::optional<Expected> old;
    if (before->exists(path))
        old = expected_on(*before, tiny_model(1));
    return scenario(std::move(name), before, std::move(old), tiny_model(2),
                    [sharding, options](const Stage& stage) {
                        return notes_of(
                            save(tiny_model(2), sharding, path, options, {stage.reactor}));
                    });
}

FaultScenario reading(std::string name, const std::shared_ptr<SimulatedDisk>& before, Run run) {
    FaultScenario out = scenario(std::move(name), before, expected_on(*before, tiny_model(1)),
                                 tiny_model(1), std::move(run));
    out.only_reads = true;
    return out;
}

Result<Notes> load_all(const Stage& stage) {
    auto loaded = load_model(path, stage.reactor);
    if (!loaded)
        return std::unexpected(std::move(loaded.error()));
    if (const std::string differs = difference(tiny_model(1), *loaded); !differs.empty())
        return fail(Errc::checkpoint_digest_mismatch, "compare", differs);
    return Notes();
}

Result<Notes> verify_all(const Stage& stage) {
    auto report = verify_checkpoint(path, *stage.reactor);
    if (!report)
        return std::unexpected(std::move(report.error()));
    if (!report->findings.empty())
        return std::unexpected(std::move(report->findings.front()));
    return Notes();
}

FaultScenario converting(std::string name, const std::string& target, ConvertOptions options) {
    const auto before = disk_with(tiny_model(1), {2, 0}, sharded);
    std::optional<Expected> old;
    if (target == path)
        old = expected_on(*before, tiny_model(1));
    return scenario(
        std::move(name), before, std::move(old), tiny_model(1),
        [target, options](const Stage& stage) {
            return notes_of(convert_checkpoint(path, target, *stage.reactor, options));
        },
        target);
}

} // namespace

std::vector<FaultScenario> fault_scenarios() {
    std::vector<FaultScenario> out;
    out.push_back(saving("first save, two ranks, two files", empty_disk(), {2, 0}, both_files()));
    out.push_back(saving("first save, inner shards", empty_disk(), {2, 1}, {}));
    out.push_back(saving("replace two files by one", disk_with(tiny_model(1), {1, 0}, both_files()),
                         {2, 0}, {}));
    out.push_back(saving("replace shards by shards", disk_with(tiny_model(1), {2, 0}, sharded),
                         {2, 0}, sharded));
    out.push_back(
        reading("load two files", disk_with(tiny_model(1), {1, 0}, both_files()), load_all));
    out.push_back(reading("load shards", disk_with(tiny_model(1), {2, 0}, sharded), load_all));
    out.push_back(reading("verify", disk_with(tiny_model(1), {1, 0}, both_files()), verify_all));
    for (const std::size_t patient : {2, 4})
        out[patient].patient = true;
    out.push_back(converting("convert beside", "/ckpt/out", {}));
    out.push_back(converting("convert in place", path, {.files = 2}));
    return out;
}

} // namespace safering::test
