// A run that saves, loads, recovers and prunes while operations fail, in what it is to clean up too, and again. One
// failure leaves what a retry knows; several leave what only a clean-up that failed has made. FAULT_RUNS=n, FAULT_SEED=s.
#include <algorithm>
#include <map>
#include <optional>
#include <random>
#include <set>

#include <boost/asio/io_context.hpp>
#include <gtest/gtest.h>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <safering/retention.hpp>

#include "../checkpoint/model.hpp"
#include "../crash/recovery.hpp"
#include "../environment.hpp"
#include "../io/faulty_backend.hpp"
#include "io/simulated_disk.hpp"

namespace safering::test {
namespace {

const std::string directory = "/ckpt";

Model model_of(std::uint64_t seed) {
    return with_seed(seed, {make_tensor("a", Dtype::bf16, {64, 65}, 4 * seed),
                            make_tensor("b", Dtype::u8, {3, 4096}, 4 * seed + 1)});
}

class History {
  public:
    explicit History(std::uint64_t seed) : random_(seed) {
        disk_->make_directory(directory);
        const ReactorOptions options{.buffer_bytes = 16 << 10, .buffer_count = 3};
        auto backend = std::make_unique<FaultyBackend>(make_simulated_backend(disk_, 64), seed);
        faults_ = backend.get();
        auto context = std::make_unique<boost::asio::io_context>(1);
        boost::asio::io_context& used = *context;
        reactor_ = make_reactor(std::move(backend), options, std::move(context), used);
    }

    /// What is wrong, "" where nothing is.
    std::string run() {
        const unsigned one_in = 3u << random_() % 5;
        for (int i = 0; i < 16 && wrong_.empty(); ++i) {
            faults_->fail_one_in(random_() % 4 == 0 ? 0 : one_in);
            act();
        }
        faults_->fail_one_in(0);
        for (const auto& [name, models] : possible_)
            load(name);
        clear_up();
        return wrong_;
    }

  private:
    static std::string at(const std::string& name) { return directory + "/" + name; }

    void expect(bool good, std::string text) {
        if (!good && wrong_.empty())
            wrong_ = std::move(text);
    }
    void expect_injected(const Error& error) {
        expect(FaultyBackend::is_injected(error), error.message());
    }

    void act() {
        const std::string name = fmt::format("step-{}", random_() % 3);
        switch (random_() % 6) {
        case 0:
        case 1:
        case 2: return save_to(name);
        case 3: return load(name);
        case 4: return recover_at(name);
        default: return prune_some();
        }
    }

    void save_to(const std::string& name) {
        const std::uint64_t seed = random_() % 1000;
        WriterOptions options;
        if (random_() % 2 == 0)
            options.layout = FileLayout::sharded;
        const Sharding sharding{static_cast<std::uint32_t>(1 + random_() % 2), random_() % 2};
        const auto saved = save(model_of(seed), sharding, at(name), options, {reactor_});
        auto& models = possible_[name];
        if (saved)
            models = {seed};
        else {
            expect_injected(saved.error());
            if (models.empty())
                models.insert(std::nullopt);
            models.insert(seed);
        }
    }

    void load(const std::string& name) {
        const auto loaded = load_model(at(name), reactor_);
        const auto found = possible_.find(name);
        if (!loaded) {
            if (loaded.error().code != Errc::checkpoint_not_found)
                return expect_injected(loaded.error());
            return expect(found == possible_.end() || found->second.contains(std::nullopt),
                          name + " is not there");
        }
        const auto seed = seed_of(*loaded);
        expect(seed && found != possible_.end() && found->second.contains(seed),
               name + " is another model");
        expect(!seed || difference(model_of(*seed), *loaded).empty(), name + " is a mixture");
    }

    void recover_at(const std::string& name) {
        const auto report =
            recover_checkpoint(at(name), *reactor_,
                               random_() % 2 == 0 ? StaleAttempts::all : StaleAttempts::overtaken);
        if (!report)
            return expect_injected(report.error());
        for (const Error& failure : report->failures)
            expect_injected(failure);
    }

    void prune_some() {
        const auto report = prune(directory, *reactor_, {.keep_last = 1 + random_() % 2});
        if (!report)
            return expect_injected(report.error());
        for (const Error& failure : report->failures)
            expect_injected(failure);
        for (const StepCheckpoint& removed : report->removed)
            possible_.erase(removed.name);
        if (!report->failures.empty()) // of what is given up and of what stays
            for (auto& [name, models] : possible_)
                models.insert(std::nullopt);
    }

    // Whatever has failed, nothing of it withstands the next recovery, removal and save.
    void clear_up() {
        for (const std::string name : {"step-0", "step-1", "step-2"}) {
            const auto report = recover_checkpoint(at(name), *reactor_, StaleAttempts::all);
            expect(report.has_value(), report ? "" : "recover: " + report.error().message());
            for (const Error& failure : report ? report->failures : std::vector<Error>())
                expect(false, "recover: " + failure.message());
        }
        const auto pruned = prune(directory, *reactor_, {.keep_last = 3});
        expect(pruned.has_value(), pruned ? "" : "prune: " + pruned.error().message());
        for (const Error& failure : pruned ? pruned->failures : std::vector<Error>())
            expect(false, "prune: " + failure.message());
        for (const std::string& name : disk_->list(directory))
            expect(name.starts_with("step-"),
                   fmt::format("left: {} with {}", name, disk_->list(at(name))));
        for (const std::string name : {"step-0", "step-1", "step-2"}) {
            const auto saved = save(model_of(7), {1, 0}, at(name), {}, {reactor_});
            expect(saved.has_value(), saved ? "" : "save: " + saved.error().message());
            expect(saved && differences(model_of(7), {1, 0}, at(name), reactor_).empty(), "load");
        }
        expect(disk_->list(directory) == std::vector<std::string>{"step-0", "step-1", "step-2"},
               fmt::format("left: {}", disk_->list(directory)));
    }

    std::mt19937_64 random_;
    std::shared_ptr<SimulatedDisk> disk_ = std::make_shared<SimulatedDisk>();
    FaultyBackend* faults_ = nullptr;
    std::shared_ptr<Reactor> reactor_;
    /// Seeds of the models that may be there by name; nullopt: nothing may.
    std::map<std::string, std::set<std::optional<std::uint64_t>>> possible_;
    std::string wrong_;
};

TEST(FaultsAgain, NothingIsLostOrLeft) {
    const std::uint64_t first = from_environment("FAULT_SEED", 1);
    const std::uint64_t runs = from_environment("FAULT_RUNS", 300);
    for (std::uint64_t seed = first; seed < first + runs; ++seed)
        ASSERT_EQ(History(seed).run(), "") << "FAULT_SEED=" << seed;
}

} // namespace
} // namespace safering::test
