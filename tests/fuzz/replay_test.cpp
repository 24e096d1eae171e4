// Runs a fuzz target over its committed corpus, so that what a fuzzer once found stays found.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include <gtest/gtest.h>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

TEST(HeaderFuzz, CorpusHolds) {
    std::size_t inputs = 0;
    for (const auto& entry : std::filesystem::directory_iterator(HEADER_CORPUS)) {
        SCOPED_TRACE(entry.path());
        std::ifstream file(entry.path(), std::ios::binary);
        const std::string input{std::istreambuf_iterator<char>(file), {}};
        ASSERT_TRUE(file.good() || file.eof());
        EXPECT_EQ(LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()),
                                         input.size()),
                  0);
        ++inputs;
    }
    EXPECT_GT(inputs, 0U);
}

} // namespace
