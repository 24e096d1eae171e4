#include "planted_faults.hpp"

#include <atomic>
#include <cerrno>

#include "io/buffer_pool.hpp"

namespace safering::test {

namespace {

using Run = decltype(FaultScenario::run);

FaultScenario named(const std::string& name) {
    static const std::vector<FaultScenario> scenarios = fault_scenarios();
    for (const FaultScenario& scenario : scenarios)
        if (scenario.name == name)
            return scenario;
    throw std::logic_error("no such scenario: " + name);
}
FaultScenario replacing() {
    return named("replace two files by one");
}
FaultScenario loading() {
    return named("load two files");
}

// The disk says something else than what happened.
PlantedFault lie(std::string name, std::string how, std::string found_by, FaultScenario scenario,
                 std::function<void(Operation&)> lie) {
    PlantedFault planted{std::move(name), std::move(how), std::move(found_by), std::move(scenario)};
    planted.options.plant = [lie = std::move(lie)](SimulatedDisk& disk) {
        disk.intercept_end(lie);
    };
    return planted;
}

PlantedFault unheard(std::string name, Opcode op, std::string found_by) {
    return lie(std::move(name), "disk: its error becomes success", std::move(found_by), replacing(),
               [op](Operation& operation) {
                   if (operation.request.op != op || !operation.completion.error)
                       return;
                   operation.completion.error = {};
                   operation.completion.result = operation.length;
               });
}

PlantedFault short_is_whole(std::string name, Opcode op, std::string found_by,
                            FaultScenario scenario) {
    return lie(std::move(name), "disk: all of it is said to have moved", std::move(found_by),
               std::move(scenario), [op](Operation& operation) {
                   if (operation.request.op == op && !operation.completion.error)
                       operation.completion.result = operation.length;
               });
}

PlantedFault other_error(std::string name, Opcode op, int from, int to, std::string found_by,
                         FaultScenario scenario) {
    return lie(std::move(name), "disk: the error becomes another", std::move(found_by),
               std::move(scenario), [=](Operation& operation) {
                   if (operation.request.op == op && operation.completion.error.value() == from)
                       operation.completion.error = {to, std::system_category()};
               });
}

// Some operations are never carried out, and said to have been.
PlantedFault omitted(std::string name, std::string found_by,
                     std::function<bool(const Request&)> which) {
    PlantedFault planted{std::move(name), "disk: not carried out", std::move(found_by),
                         replacing()};
    planted.options.plant = [which = std::move(which)](SimulatedDisk& disk) {
        disk.intercept([which](Operation& operation) -> std::optional<Completion> {
            if (which(operation.request))
                return Completion{};
            return std::nullopt;
        });
    };
    return planted;
}

using Ended = Result<std::vector<std::string>>;

// The run goes on after an error as this says.
PlantedFault after_error(std::string name, std::string found_by,
                         std::function<Ended(const Stage&, Error)> then) {
    PlantedFault planted{std::move(name), "run: after an error", std::move(found_by), replacing()};
    planted.scenario.run = [run = planted.scenario.run,
                            then = std::move(then)](const Stage& stage) -> Ended {
        auto done = run(stage);
        return done ? std::move(done) : then(stage, std::move(done.error()));
    };
    return planted;
}

PlantedFault keeps_a_buffer() {
    PlantedFault planted{"a buffer is kept after an error", "run: it holds one to the next run",
                         "leak", replacing()};
    auto kept = std::make_shared<BufferPool::Buffer>();
    planted.scenario.run = [run = planted.scenario.run, kept](const Stage& stage) -> Ended {
        *kept = {};
        auto done = run(stage);
        if (!done)
            *kept = stage.reactor->buffers().try_acquire();
        return done;
    };
    return planted;
}

PlantedFault remembers_its_error() {
    PlantedFault planted{"a failed attempt stops the next", "run: it keeps its first error",
                         "retry", replacing()};
    auto first = std::make_shared<std::optional<Error>>();
    planted.scenario.run = [run = planted.scenario.run, first](const Stage& stage) -> Ended {
        if (*first)
            return std::unexpected(*std::exchange(*first, std::nullopt));
        auto done = run(stage);
        if (!done)
            *first = done.error();
        return done;
    };
    return planted;
}

PlantedFault never_ends() {
    auto released = std::make_shared<std::atomic<bool>>(false);
    PlantedFault planted =
        after_error("a completion is lost", "hang", [released](const Stage&, Error error) -> Ended {
            released->wait(false);
            return std::unexpected(std::move(error));
        });
    planted.how = "run: it waits for ever";
    planted.options.hang_seconds = 1;
    planted.options.on_hang = [released](SimulatedDisk&) {
        *released = true;
        released->notify_all();
    };
    return planted;
}

} // namespace

std::vector<PlantedFault> planted_faults() {
    std::vector<PlantedFault> out;
    out.push_back(unheard("a failed fsync is ignored", Opcode::fsync, "harmed"));
    out.push_back(
        unheard("a failed sync of a directory is ignored", Opcode::sync_directory, "not durable"));
    out.push_back(unheard("a failed write is ignored", Opcode::write, "harmed"));
    out.push_back(unheard("a failed rename is ignored", Opcode::rename, "not durable"));
    out.push_back(
        unheard("a failed removal is ignored", Opcode::remove_directory, "left over"));
    out.push_back(
        short_is_whole("a short write is taken for a whole", Opcode::write, "harmed", replacing()));
    out.push_back(
        short_is_whole("a short read is taken for a whole", Opcode::read, "transient", loading()));
    out.push_back(other_error("an interrupted read is not repeated", Opcode::read, EINTR, ECANCELED,
                              "transient", loading()));
    out.push_back(other_error("another error is reported", Opcode::write, ENOSPC, EIO,
                              "wrong error", replacing()));
    out.push_back(after_error("the error names no file", "wrong error",
                              [](const Stage&, Error error) -> Ended {
                                  error.file.clear();
                                  return std::unexpected(std::move(error));
                              }));
    out.push_back(after_error(
        "an error is swallowed", "not durable",
        [](const Stage&, const Error&) -> Ended { return std::vector<std::string>(); }));
    out.push_back(after_error("an error harms the old checkpoint", "harmed",
                              [](const Stage& stage, Error error) -> Ended {
                                  stage.disk->write_text(
                                      "/ckpt/step/model-00001-of-00002.safetensors", "half");
                                  return std::unexpected(std::move(error));
                              }));
    out.push_back(omitted("files are not closed", "retry",
                          [](const Request& request) { return request.op == Opcode::close; }));
    out.push_back(omitted("a failed attempt is not removed", "retry", [](const Request& request) {
        return (request.op == Opcode::unlink || request.op == Opcode::remove_directory) &&
               request.path.contains(".tmp");
    }));
    out.push_back(keeps_a_buffer());
    out.push_back(remembers_its_error());
    out.push_back(never_ends());
    return out;
}

} // namespace safering::test
