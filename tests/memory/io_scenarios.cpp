// Saves and loads on every backend. After each run its outcome is looked at without failures, and a further save by the
// same reactor must succeed and leave nothing beside itself.
#include <filesystem>
#include <iterator>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <safering/save_load.hpp>

#include "../checkpoint/model.hpp"
#include "../io/backends.hpp"
#include "io/buffer_pool.hpp"
#include "io/simulated_disk.hpp"
#include "scenarios.hpp"

namespace safering::test {

namespace {

const ReactorOptions small_buffers{.buffer_bytes = 16 << 10, .buffer_count = 3};

Model model_of(std::uint64_t seed) {
    return with_seed(seed, odd_model(seed));
}

// A reactor, and a directory on what it works on.
class Ground {
  public:
    explicit Ground(BackendKind kind) {
        if (kind == BackendKind::simulated) {
            disk_ = std::make_shared<SimulatedDisk>();
            disk_->make_directory("/ckpt");
            // The disk is not what is under test.
            disk_->intercept([](Operation&) -> std::optional<Completion> {
                allocations::begin_exemption();
                return std::nullopt;
            });
            disk_->intercept_end([](Operation&) { allocations::end_exemption(); });
            root_ = "/ckpt";
            reactor_ = make_simulated_reactor(disk_, small_buffers);
        } else {
            directory_.emplace();
            root_ = directory_->path();
            reactor_ = value_or_throw(Reactor::create(options(kind)));
        }
        // What is made at first use is no leak.
        (void)reactor_->buffers();
        (void)reactor_->endpoint();
        (void)reactor_->wait({.op = Opcode::stat, .path = "/"});
        descriptors_ = descriptors();
    }

    static ReactorOptions options(BackendKind kind) {
        ReactorOptions options = small_buffers;
        options.backend =
            kind == BackendKind::io_uring ? BackendChoice::io_uring : BackendChoice::threads;
        return options;
    }
    const std::shared_ptr<Reactor>& reactor() const { return reactor_; }
    std::string path(const std::string& name) const { return root_ + "/" + name; }

    /// Of the directory, without what only a crash leaves.
    std::vector<std::string> names() const {
        std::vector<std::string> names;
        for (const auto& entry : reactor_->wait({.op = Opcode::list, .path = root_}).entries)
            names.push_back(entry.name);
        return names;
    }
    std::string leaks() const {
        (void)reactor_->wait({.op = Opcode::stat, .path = "/"}); // behind what nobody waits for
        if (disk_ && disk_->open_files() != 0)
            return fmt::format("{} files are open", disk_->open_files());
        if (const std::int64_t now = descriptors(); now > descriptors_)
            return fmt::format("the process has {} descriptors, it had {}", now, descriptors_);
        std::vector<BufferPool::Buffer> buffers;
        while (BufferPool::Buffer buffer = reactor_->buffers().try_acquire())
            buffers.push_back(std::move(buffer));
        if (buffers.size() != reactor_->buffers().count())
            return fmt::format("{} of {} buffers are free", buffers.size(),
                               reactor_->buffers().count());
        return {};
    }

  private:
    static std::int64_t descriptors() {
        return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {});
    }

    std::shared_ptr<SimulatedDisk> disk_;
    std::optional<TemporaryDirectory> directory_;
    std::string root_;
    std::shared_ptr<Reactor> reactor_;
    std::int64_t descriptors_ = 0;
};

Result<void> load(const Model& expected, const std::string& path,
                  const std::shared_ptr<Reactor>& reactor) {
    HuggingFaceStorageReader reader(path, {.exchange = ExchangeWay::off}, reactor);
    auto metadata = reader.read_metadata();
    if (!metadata)
        return std::unexpected(std::move(metadata.error()));
    Model loaded = expected;
    for (TestTensor& tensor : loaded)
        std::ranges::fill(tensor.bytes, std::byte{0xA5});
    DefaultLoadPlanner planner(whole_destinations(loaded));
    auto plan = planner.create_local_plan(*metadata);
    if (!plan)
        return std::unexpected(std::move(plan.error()));
    auto prepared = reader.prepare_local_plan(std::move(*plan));
    if (!prepared)
        return std::unexpected(std::move(prepared.error()));
    std::vector<LoadPlan> plans;
    plans.push_back(std::move(*prepared));
    auto global = reader.prepare_global_plan(std::move(plans));
    if (!global)
        return std::unexpected(std::move(global.error()));
    (void)reader.async_read_data(global->front(), planner).get();
    for (std::size_t i = 0; i < expected.size(); ++i)
        if (loaded[i].bytes != expected[i].bytes)
            return fail(Errc::checkpoint_conflict, "load", expected[i].name + " differs");
    return {};
}

// What saves and loads of one kind have in common.
struct Way {
    std::string name;
    std::function<Result<void>(const Model&, const std::string&, const std::shared_ptr<Reactor>&)>
        save;
    std::function<Result<void>(const Model&, const std::string&, const std::shared_ptr<Reactor>&)>
        load;
};

Way checkpoint_way(std::string name, Sharding sharding, WriterOptions options) {
    return {std::move(name),
            [sharding, options](const Model& model, const std::string& path,
                                const std::shared_ptr<Reactor>& reactor) -> Result<void> {
                auto saved = save(model, sharding, path, options, {reactor});
                if (!saved)
                    return std::unexpected(std::move(saved.error()));
                return {};
            },
            load};
}

Way file_way() {
    return {
        "one file",
        [](const Model& model, const std::string& path,
           const std::shared_ptr<Reactor>& reactor) -> Result<void> {
            std::vector<NamedTensor> tensors;
            for (const TestTensor& tensor : model)
                tensors.push_back(
                    {tensor.name,
                     {.data = tensor.bytes.data(), .dtype = tensor.dtype, .shape = tensor.shape}});
            (void)save_file(path, tensors, {{"format", "pt"}}, reactor);
            return {};
        },
        [](const Model& model, const std::string& path,
           const std::shared_ptr<Reactor>& reactor) -> Result<void> {
            const LoadedFile loaded = load_file(path, 0, reactor);
            for (const TestTensor& tensor : model) {
                const auto found = loaded.tensors.find(tensor.name);
                if (found == loaded.tensors.end() ||
                    !std::ranges::equal(tensor.bytes,
                                        std::span(found->second.data, tensor.bytes.size())))
                    return fail(Errc::checkpoint_conflict, "load", tensor.name + " differs");
            }
            return {};
        }};
}

// A run's ground, and what lies at `path` of it.
struct State {
    std::optional<Ground> ground;
    std::string path;
    std::uint64_t present = 0; // 0: nothing
    std::uint64_t last = 0;
    bool anew = false; // each run finds nothing

    std::uint64_t next() { return ++last; }
};

std::string text_of(const Error& error) {
    return error.message();
}

// "" where model `seed`, and no other, is there; 0: nothing.
std::string is_there(const State& state, const Way& way, std::uint64_t seed) {
    const auto& reactor = state.ground->reactor();
    const Completion there = reactor->wait({.op = Opcode::stat, .path = state.path});
    if (seed == 0)
        return there.error ? "" : "something lies there";
    if (there.error)
        return "nothing lies there";
    try {
        const auto loaded = way.load(model_of(seed), state.path, reactor);
        return loaded ? "" : text_of(loaded.error());
    } catch (const std::exception& thrown) {
        return thrown.what();
    }
}

std::string save_again(State& state, const Way& way) {
    const std::uint64_t seed = state.next();
    try {
        if (auto saved = way.save(model_of(seed), state.path, state.ground->reactor()); !saved)
            return "the next save: " + text_of(saved.error());
    } catch (const std::exception& thrown) {
        return fmt::format("the next save: {}", thrown.what());
    }
    state.present = seed;
    if (std::string wrong = is_there(state, way, seed); !wrong.empty())
        return "after the next save: " + wrong;
    if (const auto names = state.ground->names(); names.size() != 1)
        return fmt::format("after the next save: {}", fmt::join(names, ", "));
    return {};
}

AllocationScenario saving(BackendKind kind, const Way& way, bool replaces) {
    const auto state = std::make_shared<State>();
    const auto begin = [=] {
        state->ground.reset();
        state->ground.emplace(kind);
        state->path = state->ground->path("step.safetensors");
        state->present = 0;
    };
    return {.name = fmt::format("{}: {} {}", name(kind), way.name, replaces ? "replaced" : "saved"),
            .set_up =
                [=] {
                    begin();
                    if (replaces)
                        if (std::string wrong = save_again(*state, way); !wrong.empty())
                            throw std::runtime_error(wrong);
                },
            .run =
                [=] {
                    return way.save(model_of(state->next()), state->path, state->ground->reactor());
                },
            .harm = [=](bool succeeded) -> std::string {
                if (std::string leaks = state->ground->leaks(); !leaks.empty())
                    return leaks;
                std::string wrong = is_there(*state, way, state->last);
                if (!wrong.empty() && !succeeded)
                    wrong = is_there(*state, way, state->present);
                if (wrong.empty())
                    wrong = save_again(*state, way);
                if (wrong.empty())
                    wrong = state->ground->leaks();
                if (wrong.empty() && !replaces)
                    begin();
                return wrong;
            },
            .tear_down = [=] { state->ground.reset(); }};
}

AllocationScenario loading(BackendKind kind, const Way& way) {
    const auto state = std::make_shared<State>();
    return {.name = fmt::format("{}: {} loaded", name(kind), way.name),
            .set_up =
                [=] {
                    state->ground.emplace(kind);
                    state->path = state->ground->path("step.safetensors");
                    if (std::string wrong = save_again(*state, way); !wrong.empty())
                        throw std::runtime_error(wrong);
                },
            .run =
                [=] {
                    return way.load(model_of(state->present), state->path,
                                    state->ground->reactor());
                },
            .harm =
                [=](bool) {
                    std::string wrong = state->ground->leaks();
                    return wrong.empty() ? is_there(*state, way, state->present) : wrong;
                },
            .tear_down = [=] { state->ground.reset(); }};
}

AllocationScenario making(BackendKind kind) {
    return {.name = fmt::format("{}: a reactor made", name(kind)), .run = [kind]() -> Result<void> {
                auto reactor = Reactor::create(Ground::options(kind));
                if (!reactor)
                    return std::unexpected(std::move(reactor.error()));
                (void)(*reactor)->buffers();
                (void)(*reactor)->endpoint();
                const Completion seen = (*reactor)->wait({.op = Opcode::stat, .path = "/"});
                return seen.error ? fail(seen.error, "stat") : Result<void>();
            }};
}

} // namespace

std::vector<AllocationScenario> io_scenarios(BackendKind kind) {
    const WriterOptions alone{.exchange = ExchangeWay::off};
    const Way full = checkpoint_way("a checkpoint", {1, 0}, alone);
    const Way shards =
        checkpoint_way("shards of two ranks", {2, 0}, {.layout = FileLayout::sharded});
    const Way file = file_way();
    std::vector<AllocationScenario> out;
    if (kind != BackendKind::simulated)
        out.push_back(making(kind));
    out.push_back(saving(kind, full, false));
    out.push_back(saving(kind, full, true));
    out.push_back(saving(kind, shards, true));
    out.push_back(saving(kind, file, true));
    out.push_back(loading(kind, full));
    out.push_back(loading(kind, file));
    return out;
}

} // namespace safering::test
