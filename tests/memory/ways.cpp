#include "ways.hpp"

#include <array>
#include <future>
#include <optional>
#include <thread>

#include <fmt/format.h>

#include <safering/async_saver.hpp>

#include "../checkpoint/thread_ranks.hpp"
#include "allocations.hpp"
#include "out_of_memory.hpp"

namespace safering::test {

namespace {

// To be loaded into.
Model emptied(Model model) {
    for (TestTensor& tensor : model)
        std::ranges::fill(tensor.bytes, std::byte{0xA5});
    return model;
}

Result<void> compare(const Model& expected, const Model& loaded) {
    for (std::size_t i = 0; i < expected.size(); ++i)
        if (loaded[i].bytes != expected[i].bytes)
            return fail(Errc::checkpoint_conflict, "load", expected[i].name + " differs");
    return {};
}

Result<void> load(const Model& expected, const std::string& path,
                  const std::shared_ptr<Reactor>& reactor) {
    HuggingFaceStorageReader reader(path, {.exchange = ExchangeWay::off}, reactor);
    auto metadata = reader.read_metadata();
    if (!metadata)
        return std::unexpected(std::move(metadata.error()));
    Model loaded = emptied(expected);
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
    return compare(expected, loaded);
}

// Two ranks at work: `begin` says how a rank begins, `decline` what one says that could not. The cause, where a rank fails,
// and not what follows from it on the other.
template <typename Report>
Result<std::vector<Report>>
both(const std::function<std::future<Report>(std::uint32_t rank)>& begin,
     const std::function<void(std::uint32_t rank)>& decline) {
    std::array<std::future<Report>, 2> ends;
    std::uint32_t begun = 0;
    Result<std::vector<Report>> reports;
    const auto fails = [&](const Error& error) {
        if (reports || reports.error().code == Errc::io_peer_lost)
            reports = std::unexpected(copy_of(error));
    };
    try {
        for (; begun < ends.size(); ++begun)
            ends[begun] = begin(begun);
    } catch (const std::bad_alloc&) {
        fails(out_of_memory());
    }
    for (std::uint32_t rank = begun; rank < ends.size(); ++rank)
        decline(rank);
    for (std::uint32_t rank = 0; rank < begun; ++rank) {
        try {
            Report report = ends[rank].get();
            if (reports)
                reports->push_back(std::move(report));
        } catch (const std::bad_alloc&) {
            fails(out_of_memory());
        } catch (const Exception& exception) {
            fails(exception.error());
        }
    }
    return reports;
}

Result<void> save_in_exchange(const Model& model, const std::string& path, ExchangeWay how,
                              const std::shared_ptr<Reactor>& reactor) {
    const Sharding sharding{2, 1};
    std::vector<Rank> ranks;
    std::vector<std::unique_ptr<DefaultSavePlanner>> planners;
    std::vector<std::unique_ptr<HuggingFaceStorageWriter>> writers;
    std::vector<SavePlan> plans;
    for (std::uint32_t rank = 0; rank < sharding.ranks; ++rank) {
        ranks.push_back(cut(model, sharding, rank));
        planners.push_back(std::make_unique<DefaultSavePlanner>(ranks[rank].tensors, rank));
        writers.push_back(std::make_unique<HuggingFaceStorageWriter>(
            path, WriterOptions{.exchange = how}, reactor));
        plans.push_back(
            value_or_throw(writers[rank]->prepare_local_plan(planners[rank]->create_local_plan())));
    }
    GlobalSavePlan global = value_or_throw(create_global_plan(std::move(plans)));
    const std::vector<SavePlan> prepared =
        value_or_throw(writers[0]->prepare_global_plan(std::move(global.plans)));
    auto written = value_or_throw(both<WriteResults>(
        [&](std::uint32_t rank) {
            return writers[rank]->write_data(prepared[rank], *planners[rank]);
        },
        [&](std::uint32_t rank) { writers[rank]->decline(prepared[rank], no_memory); }));
    (void)value_or_throw(writers[0]->finish(global.metadata, std::move(written)));
    return {};
}

Result<void> load_in_exchange(const Model& expected, const std::string& path, ExchangeWay how,
                              const std::shared_ptr<Reactor>& reactor) {
    std::vector<Model> loaded(2, emptied(expected));
    std::vector<std::unique_ptr<HuggingFaceStorageReader>> readers;
    std::vector<std::unique_ptr<DefaultLoadPlanner>> planners;
    std::vector<LoadPlan> plans;
    for (Model& model : loaded) {
        readers.push_back(std::make_unique<HuggingFaceStorageReader>(
            path, ReaderOptions{.exchange = how}, reactor));
        const Metadata metadata = value_or_throw(readers.back()->read_metadata());
        planners.push_back(std::make_unique<DefaultLoadPlanner>(whole_destinations(model)));
        plans.push_back(value_or_throw(readers.back()->prepare_local_plan(
            value_or_throw(planners.back()->create_local_plan(metadata)))));
    }
    const std::vector<LoadPlan> prepared =
        value_or_throw(readers[0]->prepare_global_plan(std::move(plans)));
    if (!prepared.front().exchange)
        return fail(Errc::plan_not_prepared, "load", "the ranks do not exchange");
    (void)value_or_throw(both<LoadReport>(
        [&](std::uint32_t rank) {
            return readers[rank]->async_read_data(prepared[rank], *planners[rank]);
        },
        [&](std::uint32_t rank) { readers[rank]->decline(prepared[rank], no_memory); }));
    for (const Model& model : loaded)
        if (auto same = compare(expected, model); !same)
            return same;
    return {};
}

// What carries words between ranks is not under test.
class ExemptRank final : public Collectives {
  public:
    explicit ExemptRank(std::shared_ptr<Collectives> real) : real_(std::move(real)) {}
    std::uint32_t rank() const override { return real_->rank(); }
    std::uint32_t ranks() const override { return real_->ranks(); }
    Result<std::vector<Bytes>> gather(Bytes own) override {
        return exempt([&] { return real_->gather(std::move(own)); });
    }
    Result<Bytes> scatter(std::vector<Bytes> parts) override {
        return exempt([&] { return real_->scatter(std::move(parts)); });
    }

  private:
    template <typename F>
    static std::invoke_result_t<F> exempt(F&& call) {
        allocations::begin_exemption();
        auto result = call();
        allocations::end_exemption();
        return result;
    }

    std::shared_ptr<Collectives> real_;
};

Result<void> save_by_two_savers(const Model& model, const std::string& path,
                                const std::shared_ptr<Reactor>& reactor) {
    const Sharding sharding{2, 1};
    const auto foreground = make_conversation(), background = make_conversation();
    std::vector<std::unique_ptr<AsyncSaver>> savers;
    std::vector<Rank> ranks;
    std::vector<std::unique_ptr<DefaultSavePlanner>> planners;
    std::vector<SavePlan> plans;
    std::vector<std::string> paths(sharding.ranks, path);
    for (std::uint32_t rank = 0; rank < sharding.ranks; ++rank) {
        ranks.push_back(cut(model, sharding, rank));
        planners.push_back(std::make_unique<DefaultSavePlanner>(ranks[rank].tensors, rank));
        plans.push_back(planners[rank]->create_local_plan());
        savers.push_back(std::make_unique<AsyncSaver>(
            AsyncSaverOptions{.reactor = reactor,
                              .foreground = std::make_shared<ExemptRank>(foreground[rank]),
                              .background = std::make_shared<ExemptRank>(background[rank])}));
    }
    std::array<std::optional<Error>, 2> errors;
    const auto save = [&](std::uint32_t rank) {
        try {
            auto saved =
                savers[rank]->save(std::move(paths[rank]), std::move(plans[rank]), *planners[rank]);
            if (saved)
                (void)saved->get();
            else
                errors[rank] = std::move(saved.error());
        } catch (const std::bad_alloc&) {
            errors[rank] = out_of_memory();
        } catch (const Exception& exception) {
            errors[rank] = copy_of(exception.error());
        }
    };
    std::thread other([&] { save(1); });
    save(0);
    other.join();
    for (std::optional<Error>& error : errors)
        if (error && error->code != Errc::io_peer_lost)
            return std::unexpected(std::move(*error));
    for (std::optional<Error>& error : errors)
        if (error)
            return std::unexpected(std::move(*error));
    return {};
}

} // namespace

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

Way exchange_way(ExchangeWay how) {
    return {fmt::format("a checkpoint exchanged by {}", name(how)),
            [how](const Model& model, const std::string& path,
                  const std::shared_ptr<Reactor>& reactor) {
                return save_in_exchange(model, path, how, reactor);
            },
            [how](const Model& model, const std::string& path,
                  const std::shared_ptr<Reactor>& reactor) {
                return load_in_exchange(model, path, how, reactor);
            }};
}

Way saver_way() {
    return {"a saver's checkpoint",
            [](const Model& model, const std::string& path,
               const std::shared_ptr<Reactor>& reactor) -> Result<void> {
                AsyncSaver saver({.reactor = reactor});
                const Rank own = cut(model, {1, 0}, 0);
                DefaultSavePlanner planner(own.tensors, 0);
                auto saved = saver.save(path, planner.create_local_plan(), planner);
                if (!saved)
                    return std::unexpected(std::move(saved.error()));
                (void)saved->get();
                return {};
            },
            load};
}

Way two_savers_way() {
    return {"a checkpoint of two savers", save_by_two_savers, load};
}

} // namespace safering::test
