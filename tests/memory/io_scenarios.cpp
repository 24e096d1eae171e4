// Saves and loads on every backend. After each run its outcome is looked at without failures, and a further save by the
// same reactor must succeed and leave nothing beside itself.
#include <array>
#include <filesystem>
#include <future>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <boost/asio/bind_executor.hpp>
#include <boost/asio/io_context.hpp>

#include <safering/async_saver.hpp>

#include "../descriptors.hpp"
#include "../io/backends.hpp"
#include "io/buffer_pool.hpp"
#include "io/simulated_disk.hpp"
#include "out_of_memory.hpp"
#include "scenarios.hpp"
#include "ways.hpp"

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
        descriptors_ = open_descriptors();
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
        if (const std::int64_t now = open_descriptors(); now > descriptors_)
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
    std::shared_ptr<SimulatedDisk> disk_;
    std::optional<TemporaryDirectory> directory_;
    std::string root_;
    std::shared_ptr<Reactor> reactor_;
    std::int64_t descriptors_ = 0;
};

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

// Three saves at once, of which the second waits until the third takes its place; and a fourth that is canceled when the
// time for a flush is up. Nobody asks for more than one word of each.
AllocationScenario superseding(BackendKind kind) {
    const auto state = std::make_shared<State>();
    const Way way = saver_way();
    return {.name = fmt::format("{}: the newest of a saver's checkpoints", name(kind)),
            .set_up =
                [=] {
                    state->ground.emplace(kind);
                    state->path = state->ground->path("step.safetensors");
                    if (std::string wrong = save_again(*state, way); !wrong.empty())
                        throw std::runtime_error(wrong);
                },
            .run = [=]() -> Result<void> {
                AsyncSaver saver({.reactor = state->ground->reactor()});
                std::vector<std::future<SaveReport>> ends;
                ends.reserve(4);
                std::vector<Rank> ranks;
                ranks.reserve(4);
                for (int i = 0; i < 4; ++i) {
                    ranks.push_back(cut(model_of(state->next()), {1, 0}, 0));
                    DefaultSavePlanner planner(ranks.back().tensors, 0);
                    ends.push_back(
                        saver.async_save(state->path, planner.create_local_plan(), planner));
                    if (i == 2)
                        saver.wait();
                }
                (void)saver.emergency_flush(std::chrono::seconds(0));
                Result<void> worst;
                for (std::future<SaveReport>& end : ends) {
                    try {
                        (void)end.get();
                    } catch (const Exception& exception) {
                        if (exception.error().code != Errc::save_superseded &&
                            exception.error().code != std::errc::operation_canceled)
                            worst = std::unexpected(exception.error());
                    } catch (const std::bad_alloc&) {
                        worst = std::unexpected(
                            Error{.code = std::make_error_code(std::errc::not_enough_memory)});
                    }
                }
                return worst;
            },
            .harm = [=](bool) -> std::string {
                std::string wrong = state->ground->leaks();
                std::uint64_t there = state->last;
                while (wrong.empty() && !is_there(*state, way, there).empty())
                    if (--there < state->present)
                        wrong = "neither the old checkpoint nor a new one is there";
                return wrong.empty() ? save_again(*state, way) : wrong;
            },
            .tear_down = [=] { state->ground.reset(); }};
}

// The Reactor's own calls: with a future, a callback, and one of another context.
AllocationScenario calling(BackendKind kind) {
    const auto state = std::make_shared<State>();
    return {
        .name = fmt::format("{}: calls with a token", name(kind)),
        .set_up =
            [=] {
                state->ground.emplace(kind);
                state->path = state->ground->path("a file");
            },
        .run = [=]() -> Result<void> {
            Reactor& reactor = *state->ground->reactor();
            boost::asio::io_context context;
            std::promise<boost::system::error_code> ended;
            std::array<std::byte, 512> memory{};
            Completion opened =
                reactor.wait({.op = Opcode::open, .mode = OpenMode::create, .path = state->path});
            if (opened.error)
                return fail(opened.error, "open");
            const auto file = static_cast<int>(opened.result);
            int reader = -1;
            const auto calls = [&] {
                const Completion readable = reactor.wait({.op = Opcode::open, .path = state->path});
                reader = readable.error ? -1 : static_cast<int>(readable.result);
                (void)reactor.async_write(file, memory, 0).get();
                (void)reactor.async_read(reader, std::span(memory), 0).get();
                (void)reactor.async_fsync(file).get();
                (void)reactor
                    .async_perform(
                        {.op = Opcode::write, .file = file, .data = memory.data(), .length = 1})
                    .get();
                bool called = false;
                reactor.async_fsync(
                    file, boost::asio::bind_executor(
                              context, [&](boost::system::error_code) { called = true; }));
                while (!called && context.run_one() != 0)
                    continue;
                reactor.async_fsync(
                    file, [&](boost::system::error_code error) { ended.set_value(error); });
                (void)ended.get_future().get();
            };
            const bool had = had_memory(calls);
            reactor.close(file);
            if (reader >= 0)
                reactor.close(reader);
            return had ? Result<void>() : std::unexpected(out_of_memory());
        },
        .harm =
            [=](bool) {
                (void)state->ground->reactor()->wait({.op = Opcode::unlink, .path = state->path});
                return state->ground->leaks();
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
    const Way saver = saver_way();
    std::vector<AllocationScenario> out;
    if (kind != BackendKind::simulated)
        out.push_back(making(kind));
    out.push_back(saving(kind, full, false));
    out.push_back(saving(kind, full, true));
    out.push_back(saving(kind, shards, true));
    out.push_back(saving(kind, file, true));
    out.push_back(saving(kind, saver, true));
    out.push_back(superseding(kind));
    out.push_back(saving(kind, two_savers_way(), true));
    out.push_back(calling(kind));
    out.push_back(loading(kind, full));
    out.push_back(loading(kind, file));
    for (const ExchangeWay how : {ExchangeWay::process_memory, ExchangeWay::shared_memory}) {
        out.push_back(saving(kind, exchange_way(how), true));
        out.push_back(loading(kind, exchange_way(how)));
    }
    return out;
}

} // namespace safering::test
