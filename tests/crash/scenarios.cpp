#include "scenarios.hpp"

#include <cerrno>
#include <random>

#include <fmt/format.h>

#include "checkpoint/attempt.hpp"

namespace safering::test {

namespace {

const std::string path = "/ckpt/step";

// Waits for a save, a conversion, and so on; a scenario that cannot be recorded is no test.
void demand(const Result<SaveReport>& report) {
    if (!report)
        throw Exception(report.error());
}

std::function<Result<SaveReport>(const Model&, const std::shared_ptr<Reactor>&)>
saving_again(std::string target = path) {
    return [target](const Model& model, const std::shared_ptr<Reactor>& reactor) {
        return save(model, {1, 0}, target, {}, {reactor});
    };
}

Expectations expectations(std::optional<Expected> old, Expected fresh) {
    return {.old = std::move(old), .fresh = std::move(fresh), .save_again = saving_again()};
}

const WriterOptions one_file;
const WriterOptions sharded{.layout = FileLayout::sharded};

// Some kilobytes, with an inner shard, a scalar, and a tensor of whole blocks.
Model middle_model(std::uint64_t seed) {
    return {make_tensor("a.weight", Dtype::bf16, {32, 48}, seed),
            make_tensor("b.bias", Dtype::f32, {33}, seed + 1),
            make_tensor("c.scale", Dtype::f32, {}, seed + 2),
            make_tensor("d.block", Dtype::u8, {2, 4096}, seed + 3)};
}

WriterOptions both_files() {
    return two_files(tiny_model(0));
}

Scenario replace_and_clean_up() {
    auto disk = disk_with(tiny_model(1), {2, 0}, both_files());
    disk->write_text(path + "/config.json", "{}");
    for (const char* digit : {"0", "1"}) {
        const std::string stale =
            "/ckpt/" + checkpoint::attempt_directory_name("step", std::string(31, '0') + digit);
        disk->write_text(stale + "/model-00001-of-00001.safetensors", "half");
        disk->write_text(stale + "/safering.manifest.json", "half");
    }
    const Expected old = expected_on(*disk, tiny_model(1));
    demand(save_in_order(tiny_model(2), {2, 0}, path, sharded, *disk, crash_reactor(disk)));
    return recorded("replace by shards, clean up older attempts", *disk,
                    expectations(old, expected_on(*disk, tiny_model(2))));
}

Scenario convert(std::string name, const std::string& destination, const ConvertOptions& options) {
    auto disk = disk_with(tiny_model(1), {2, 0}, sharded);
    const Expected source = expected_on(*disk, tiny_model(1));
    demand(convert_checkpoint(path, destination, *crash_reactor(disk), options));
    const bool in_place = destination == path;
    Expectations expected = expectations(in_place ? std::optional(source) : std::nullopt,
                                         expected_on(*disk, tiny_model(1), destination));
    expected.path = destination;
    expected.save_again = saving_again(destination);
    expected.beside =
        in_place ? std::vector<std::string>{"step"} : std::vector<std::string>{"out", "step"};
    return recorded(std::move(name), *disk, std::move(expected));
}

Result<SaveReport> save_alone(const Model& model, std::uint32_t rank,
                              const std::shared_ptr<Reactor>& reactor) {
    HuggingFaceStorageWriter writer(path, {.layout = FileLayout::sharded, .alone = RankOf{rank, 2}},
                                    reactor);
    const Rank memory = cut({model.at(rank)}, {1, 0}, 0);
    DefaultSavePlanner planner(memory.tensors, rank);
    auto plans = writer.prepare_global_plan({planner.create_local_plan()});
    if (!plans)
        return std::unexpected(plans.error());
    auto results = writer.write_data(plans->front(), planner).get();
    return writer.finish({}, {std::move(results)});
}

// Rank 0 saves its own tensor again beside what rank 1 saved.
Scenario alone_again() {
    auto disk = empty_disk();
    for (const std::uint32_t rank : {0u, 1u})
        demand(save_alone(tiny_model(1), rank, crash_reactor(disk)));
    disk = settled(*disk);
    Model fresh = tiny_model(2);
    fresh[1] = tiny_model(1)[1];
    const Expected old = expected_on(*disk, tiny_model(1));
    demand(save_alone(fresh, 0, crash_reactor(disk)));
    return recorded("a rank alone, over its older shard", *disk,
                    {.old = old, .fresh = expected_on(*disk, fresh), .save_again = {}});
}

Scenario alone_first() {
    auto disk = empty_disk();
    demand(save_alone(tiny_model(1), 0, crash_reactor(disk)));
    return recorded("a rank alone, first", *disk,
                    {.old = {}, .fresh = expected_on(*disk, {tiny_model(1)[0]}), .save_again = {}});
}

// A disk whose switch was committed and then cut off.
std::shared_ptr<SimulatedDisk> cut_off() {
    auto disk = disk_with(tiny_model(1), {1, 0}, both_files());
    disk->inject({.op = Opcode::rename,
                  .path_contains = "safering.manifest",
                  .times = Fault::for_ever,
                  .error = EIO});
    if (save(tiny_model(2), {1, 0}, path, one_file, {crash_reactor(disk)}))
        throw std::logic_error("the switch was not cut off");
    disk->clear_faults();
    return settled(*disk);
}

Scenario finish_by_reader() {
    auto disk = cut_off();
    if (!load_model(path, crash_reactor(disk)))
        throw std::logic_error("the switch was not finished");
    Expected fresh = expected_on(*disk, tiny_model(2));
    // What had been committed before the log began is what must be there at every point of it.
    Scenario scenario =
        recorded("a reader finishes a switch", *disk, expectations({}, std::move(fresh)));
    scenario.reported_at = 0;
    return scenario;
}

Scenario save_over_cut_off() {
    auto disk = cut_off();
    auto finished = settled(*disk);
    if (!load_model(path, crash_reactor(finished)))
        throw std::logic_error("the switch was not finished");
    const Expected old = expected_on(*finished, tiny_model(2));
    demand(save_in_order(tiny_model(3), {1, 0}, path, both_files(), *disk, crash_reactor(disk)));
    return recorded("save over a switch that was cut off", *disk,
                    expectations(old, expected_on(*disk, tiny_model(3))));
}

Scenario target_appears() {
    auto disk = empty_disk();
    auto reactor = crash_reactor(disk);
    const Rank rank = cut(tiny_model(1), {1, 0}, 0);
    DefaultSavePlanner planner(rank.tensors);
    HuggingFaceStorageWriter writer(path, {}, reactor);
    auto global = value_or_throw(create_global_plan({planner.create_local_plan()}));
    auto plans = value_or_throw(writer.prepare_global_plan(global.plans));
    (void)reactor->wait({.op = Opcode::make_directory, .path = path});
    const auto opened = reactor->wait(
        {.op = Opcode::open, .mode = OpenMode::create, .path = path + "/config.json"});
    (void)reactor->wait({.op = Opcode::close, .file = static_cast<int>(opened.result)});
    auto results = writer.write_data(plans[0], planner).get();
    demand(writer.finish(global.metadata, {std::move(results)}));
    Expectations expected = expectations({}, expected_on(*disk, tiny_model(1)));
    expected.optional = {"config.json"};
    std::erase(expected.fresh.files, "config.json");
    return recorded("the target appears during the save", *disk, std::move(expected));
}

// It gives up before its commit and removes what it made: the old checkpoint stays.
Scenario failed_save() {
    auto disk = disk_with(tiny_model(1), {1, 0}, both_files());
    const Expected old = expected_on(*disk, tiny_model(1));
    disk->inject({.op = Opcode::write,
                  .path_contains = "safering.manifest",
                  .times = Fault::for_ever,
                  .error = ENOSPC});
    if (save(tiny_model(2), {1, 0}, path, one_file, {crash_reactor(disk)}))
        throw std::logic_error("the save did not fail");
    disk->clear_faults();
    // Nothing new may ever be seen: the old one is both.
    Scenario scenario = recorded("a save that fails and cleans up", *disk, expectations({}, old));
    scenario.reported_at = 0;
    return scenario;
}

} // namespace

Model tiny_model(std::uint64_t seed) {
    return {make_tensor("a", Dtype::u8, {2, 300}, 2 * seed),
            make_tensor("b", Dtype::f32, {33}, 2 * seed + 1)};
}

std::shared_ptr<SimulatedDisk> settled(const SimulatedDisk& disk) {
    return disk.crash({CrashPolicy::Kind::keep_all});
}

std::shared_ptr<SimulatedDisk> empty_disk() {
    auto disk = std::make_shared<SimulatedDisk>();
    disk->make_directory("/ckpt");
    return disk;
}

std::shared_ptr<SimulatedDisk> disk_with(const Model& model, Sharding sharding,
                                         const WriterOptions& options) {
    auto disk = empty_disk();
    demand(save(model, sharding, path, options, {crash_reactor(disk)}));
    return settled(*disk);
}

Expected expected_on(const SimulatedDisk& disk, Model model, const std::string& target) {
    return {std::move(model), disk.list(target)};
}

Scenario recorded(std::string name, const SimulatedDisk& disk, Expectations expectations) {
    auto log = disk.log();
    const std::size_t reported_at = log.size();
    return {std::move(name), {disk.base(), std::move(log)}, reported_at, std::move(expectations)};
}

Result<SaveReport> save_in_order(const Model& model, Sharding sharding, const std::string& target,
                                 const WriterOptions& options, SimulatedDisk& disk,
                                 const std::shared_ptr<Reactor>& reactor) {
    std::vector<Rank> ranks;
    std::vector<SavePlan> plans;
    std::vector<std::unique_ptr<DefaultSavePlanner>> planners;
    for (std::uint32_t rank = 0; rank < sharding.ranks; ++rank) {
        ranks.push_back(cut(model, sharding, rank));
        planners.push_back(std::make_unique<DefaultSavePlanner>(ranks.back().tensors, rank));
        plans.push_back(planners.back()->create_local_plan());
    }
    HuggingFaceStorageWriter writer(target, options, reactor);
    auto global = create_global_plan(std::move(plans));
    if (!global)
        return std::unexpected(global.error());
    auto prepared = writer.prepare_global_plan(std::move(global->plans));
    if (!prepared)
        return std::unexpected(prepared.error());
    // Held, so that all ranks' first operations are there before one of them is performed.
    disk.hold();
    std::vector<std::future<WriteResults>> futures;
    for (std::uint32_t rank = 0; rank < sharding.ranks; ++rank)
        futures.push_back(writer.write_data((*prepared)[rank], *planners[rank]));
    disk.release();
    std::vector<WriteResults> results;
    for (auto& future : futures)
        results.push_back(future.get());
    return writer.finish(global->metadata, std::move(results));
}

Scenario replace(std::string name, const WriterOptions& before, Sharding sharding,
                 const WriterOptions& after) {
    auto disk = disk_with(tiny_model(1), {1, 0}, before);
    const Expected old = expected_on(*disk, tiny_model(1));
    demand(save_in_order(tiny_model(2), sharding, path, after, *disk, crash_reactor(disk)));
    return recorded(std::move(name), *disk, expectations(old, expected_on(*disk, tiny_model(2))));
}

Scenario first_save(std::string name, Sharding sharding, const WriterOptions& options) {
    auto disk = empty_disk();
    demand(save_in_order(tiny_model(1), sharding, path, options, *disk, crash_reactor(disk)));
    return recorded(std::move(name), *disk, expectations({}, expected_on(*disk, tiny_model(1))));
}

std::vector<Scenario> small_scenarios() {
    std::vector<Scenario> out;
    out.push_back(first_save("first save, one file", {1, 0}, one_file));
    out.push_back(first_save("first save, two ranks, two files", {2, 0}, both_files()));
    out.push_back(first_save("first save, two ranks, inner shards", {2, 1}, one_file));
    out.push_back(first_save("first save, shards", {2, 0}, sharded));
    out.push_back(replace("replace two files by one", both_files(), {1, 0}, one_file));
    out.push_back(replace("replace one file by two", one_file, {2, 0}, both_files()));
    out.push_back(replace("replace one file by one", one_file, {2, 1}, one_file));
    out.push_back(replace_and_clean_up());
    out.push_back(target_appears());
    out.push_back(convert("convert beside", "/ckpt/out", {}));
    out.push_back(convert("convert in place", path, {.files = 2}));
    out.push_back(alone_first());
    out.push_back(alone_again());
    out.push_back(finish_by_reader());
    out.push_back(save_over_cut_off());
    out.push_back(failed_save());
    return out;
}

Scenario random_scenario(std::uint64_t seed) {
    std::mt19937_64 random(seed);
    const auto layout = [&](const Model& model) {
        const std::uint64_t kind = random() % 3;
        return kind == 0 ? WriterOptions{} : kind == 1 ? two_files(model) : sharded;
    };
    const Model old = middle_model(4 * seed + 1000);
    const Model fresh = middle_model(4 * seed + 3000);
    const bool replaces = random() % 4 != 0;
    auto disk = replaces ? disk_with(old, {1, 0}, layout(old)) : empty_disk();
    std::optional<Expected> before;
    if (replaces)
        before = expected_on(*disk, old);
    disk->shuffle_completions(random());
    if (random() % 2 == 0)
        disk->shorten_transfers(random());
    const Sharding sharding{static_cast<std::uint32_t>(1 + random() % 3), random() % 2};
    const WriterOptions options = layout(fresh);
    demand(save_in_order(fresh, sharding, path, options, *disk, crash_reactor(disk)));
    return recorded(fmt::format("random save {}", seed), *disk,
                    expectations(before, expected_on(*disk, fresh)));
}

} // namespace safering::test
