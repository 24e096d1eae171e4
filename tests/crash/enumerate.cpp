#include "enumerate.hpp"

#include <array>
#include <random>

#include <fmt/format.h>

namespace safering::test {

namespace {

class Enumerating {
  public:
    Enumerating(const Scenario& scenario, const EnumerationOptions& options)
        : scenario_(scenario), options_(options), replay_(scenario.recording),
          oracle_(scenario.expectations, replay_, options.deep_every) {}

    Enumeration run() {
        const std::size_t last = replay_.recording.log.size();
        for (std::size_t records = 0; records <= last && out_.violation.empty(); ++records) {
            CrashPoint point(replay_, records);
            ++out_.points;
            if (point.bits() <= options_.exhaustive_bits) {
                all(point);
            } else {
                ++out_.sampled_points;
                some(point);
            }
        }
        out_.distinct = known_.size();
        out_.runs = oracle_.runs();
        out_.deep_runs = oracle_.deep_runs();
        return out_;
    }

  private:
    void all(CrashPoint& point) {
        const std::uint64_t names_end = std::uint64_t{1} << point.name_bits();
        const std::uint64_t files_end = std::uint64_t{1} << (point.bits() - point.name_bits());
        CrashPoint::Choice choice{0, std::vector<CrashPoint::Mask>(point.files())};
        std::vector<std::uint64_t> content = point.content();
        for (choice.names = 0; choice.names < names_end; ++choice.names) {
            const NameTree names = point.names_of(choice.names);
            const StateHash hash(names, replay_.kinds);
            for (std::uint64_t bits = 0; bits < files_end; ++bits) {
                std::uint64_t rest = bits;
                for (std::size_t f = 0; f < point.files(); ++f) {
                    choice.files[f] = rest & ((std::uint64_t{1} << point.file_bits(f)) - 1);
                    rest >>= point.file_bits(f);
                    point.set_content(f, choice.files[f], content);
                }
                if (!holds(point, choice, names, content, hash.value(content)))
                    return;
            }
        }
    }

    // Even odds would hardly ever keep, or lose, nearly everything, where most bugs are.
    void some(CrashPoint& point) {
        std::mt19937_64 random(mix(options_.seed, point.records()));
        constexpr std::array percents{0u, 100u, 5u, 50u, 95u};
        for (std::uint64_t i = 0; i < options_.samples; ++i) {
            const unsigned percent = percents[i < 2 ? i : 2 + i % 3];
            const auto draw = [&](unsigned bits) {
                CrashPoint::Mask mask;
                for (unsigned bit = 0; bit < bits; ++bit)
                    mask[bit] = random() % 100 < percent;
                return mask;
            };
            CrashPoint::Choice choice{draw(point.name_bits()).to_ullong(), {}};
            for (std::size_t f = 0; f < point.files(); ++f)
                choice.files.push_back(draw(point.file_bits(f)));
            const CrashPoint::State state = point.state(choice);
            if (!holds(point, choice, state.names, state.content,
                       StateHash(state.names, replay_.kinds).value(state.content)))
                return;
        }
    }

    bool holds(CrashPoint& point, const CrashPoint::Choice& choice, const NameTree& names,
               const std::vector<std::uint64_t>& content, std::uint64_t hash) {
        ++out_.states;
        const auto [known, inserted] = known_.try_emplace(hash, Found::neither);
        if (inserted) {
            const Outcome outcome = oracle_.outcome(point, choice, names, content, hash);
            known->second = outcome.found;
            if (outcome.found == Found::neither)
                return broken("neither old nor new", outcome.problem, point, choice);
            if (!outcome.problem.empty())
                return broken("wrong files", outcome.problem, point, choice);
        }
        const Found found = known->second;
        ++out_.seen[static_cast<int>(found)];
        if (point.records() >= scenario_.reported_at && found != Found::fresh)
            return broken("reported, but lost",
                          "success had been reported, and the new checkpoint is not there", point,
                          choice);
        if (found == Found::nothing && scenario_.expectations.old)
            return broken("old one lost", "there was a checkpoint, and there is none", point,
                          choice);
        return true;
    }

    bool broken(std::string check, const std::string& problem, const CrashPoint& point,
                const CrashPoint::Choice& choice) {
        out_.broken = std::move(check);
        out_.violation =
            fmt::format("{}, seed {}, state {}: {}: {}\n{}", scenario_.name, options_.seed,
                        out_.states, out_.broken, problem, point.describe(choice));
        return false;
    }

    const Scenario& scenario_;
    const EnumerationOptions options_;
    Replay replay_;
    RecoveryOracle oracle_;
    std::unordered_map<std::uint64_t, Found> known_;
    Enumeration out_;
};

} // namespace

Enumeration enumerate(const Scenario& scenario, const EnumerationOptions& options) {
    return Enumerating(scenario, options).run();
}

} // namespace safering::test
