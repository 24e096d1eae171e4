// Runs a fuzz target over its committed corpus, so that what a fuzzer once found stays found, and over inputs made of
// that corpus by chance: FUZZ_MUTATIONS of them, from FUZZ_SEED. The corpus is FUZZ_CORPUS.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include <gtest/gtest.h>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

std::string environment(const char* name, const char* otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr ? otherwise : text;
}

std::vector<std::string> corpus() {
    std::vector<std::filesystem::path> paths;
    for (const auto& entry : std::filesystem::directory_iterator(environment("FUZZ_CORPUS", ".")))
        paths.push_back(entry.path());
    std::ranges::sort(paths); // the same inputs from the same seed
    std::vector<std::string> inputs;
    for (const auto& path : paths) {
        std::ifstream file(path, std::ios::binary);
        inputs.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
    return inputs;
}

int run(const std::string& input) {
    return LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()),
                                  input.size());
}

// What a fuzzer does to an input, without its eyes.
std::string mutated(const std::vector<std::string>& inputs, std::mt19937_64& random) {
    std::string out = inputs[random() % inputs.size()];
    for (std::uint64_t n = 1 + random() % 4; n > 0; --n) {
        const std::size_t at = random() % (out.size() + 1);
        const std::string& other = inputs[random() % inputs.size()];
        const std::size_t from = random() % (other.size() + 1);
        switch (random() % 5) {
        case 0: out.insert(at, 1, static_cast<char>(random())); break;
        case 1: out.erase(at, 1 + random() % 8); break;
        case 2: out.insert(at, other, from, random() % 32); break;
        case 3: out.resize(at); break;
        default:
            if (at < out.size())
                out[at] =
                    static_cast<char>(random() % 2 == 0 ? random() : out[at] ^ 1 << random() % 8);
        }
    }
    return out;
}

TEST(FuzzReplay, CorpusHolds) {
    const auto inputs = corpus();
    ASSERT_FALSE(inputs.empty());
    for (const std::string& input : inputs)
        EXPECT_EQ(run(input), 0);
}

TEST(FuzzReplay, MutationsHold) {
    const auto inputs = corpus();
    ASSERT_FALSE(inputs.empty());
    std::mt19937_64 random(std::strtoull(environment("FUZZ_SEED", "1").c_str(), nullptr, 10));
    const auto count = std::strtoull(environment("FUZZ_MUTATIONS", "5000").c_str(), nullptr, 10);
    for (std::uint64_t i = 0; i < count; ++i)
        ASSERT_EQ(run(mutated(inputs, random)), 0);
}

} // namespace
