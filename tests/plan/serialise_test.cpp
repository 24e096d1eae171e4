#include <safering/plan.hpp>

#include <cstring>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <xxhash.h>

#include "plan/byte_codec.hpp"
#include "random_plans.hpp"

namespace safering {
namespace {

using plan::oracle::Random;
using Bytes = std::vector<std::byte>;

std::uint64_t any_number(Random& random) {
    return random.below(~std::uint64_t{0}) >> random.below(64);
}

Shape any_shape(Random& random) {
    Shape shape;
    for (std::uint64_t rank = random.below(7); rank > 0; --rank)
        shape.push_back(any_number(random));
    return shape;
}

std::string any_name(Random& random) {
    std::string name = "model.layers." + std::to_string(random.below(6));
    if (random.chance(6))
        name.append(random.below(600), 'x'); // some too long to be shared
    return random.chance(20) ? std::string() : name + std::string(random.below(2), '\0');
}

StorageInfo any_storage(Random& random, std::size_t files) {
    return {static_cast<std::uint32_t>(random.below(files)), any_number(random),
            any_number(random)};
}

SavePlan any_save_plan(Random& random) {
    SavePlan plan{static_cast<std::uint32_t>(any_number(random)), {}, {}};
    for (std::uint64_t n = random.below(12); n > 0; --n) {
        WriteItem item{any_name(random),
                       static_cast<WriteItemType>(random.below(2)),
                       static_cast<Dtype>(random.below(dtype_count)),
                       {any_shape(random), any_shape(random)},
                       any_shape(random)};
        if (random.chance(2))
            item.chunk = {Shape(item.size.size(), 0), item.size};
        plan.items.push_back(item);
    }
    if (random.chance(2)) {
        StoragePlan storage{"0123456789abcdef",
                            "/tmp/x",
                            static_cast<FileLayout>(random.below(2)),
                            std::uint64_t{4096} << random.below(20),
                            {},
                            {}};
        for (std::uint64_t n = 1 + random.below(3); n > 0; --n)
            storage.files.push_back(
                {"model-" + std::to_string(n), any_number(random), any_number(random)});
        for (std::size_t n = plan.items.size(); n > 0; --n)
            storage.placements.push_back(
                {static_cast<std::uint32_t>(random.below(storage.files.size())),
                 any_number(random)});
        plan.storage = storage;
    }
    return plan;
}

WriteResults any_results(Random& random) {
    WriteResults results{static_cast<std::uint32_t>(random.below(9)), "attempt", {"/a", "/b"}, {}};
    for (std::uint64_t n = random.below(12); n > 0; --n) {
        WriteResult result{
            {any_name(random), any_shape(random)}, any_number(random), any_storage(random, 2), {}};
        for (std::uint64_t d = random.below(4); d > 0; --d)
            result.digests.push_back(any_number(random));
        results.items.push_back(result);
    }
    results.work = {.seconds = static_cast<double>(random.below(1 << 30)) / 1e6,
                    .flush_seconds = static_cast<double>(random.below(1 << 10)) / 1e6,
                    .requests = any_number(random),
                    .digests = any_number(random)};
    results.backend = static_cast<BackendKind>(random.below(3));
    results.reason = std::string(random.below(4), 'r');
    return results;
}

LoadPlan any_load_plan(Random& random) {
    LoadPlan plan;
    for (std::uint64_t n = random.below(12); n > 0; --n)
        plan.items.push_back({any_name(random), static_cast<std::uint32_t>(any_number(random)),
                              any_shape(random), any_shape(random), any_shape(random),
                              any_shape(random)});
    const auto any_ranges = [&] {
        std::vector<FileRange> ranges;
        std::uint64_t at = 0;
        for (std::uint64_t n = random.below(5); n > 0; --n) {
            const std::uint64_t begin = at + random.below(1 << 20);
            at = begin + 1 + random.below(1 << 20);
            ranges.push_back({static_cast<std::uint32_t>(ranges.size() / 2), {begin, at}});
        }
        return ranges;
    };
    if (random.chance(2))
        plan.offer = LoadOffer{"host/name", "identity", std::uint64_t{4096} << random.below(20),
                               any_ranges()};
    if (random.chance(2)) {
        plan.exchange = LoadExchange{.id = "0123",
                                     .rank = static_cast<std::uint32_t>(random.below(9)),
                                     .way = static_cast<ExchangeWay>(random.below(4)),
                                     .chunk_bytes = 4096,
                                     .cells = {{1, 0, 2, 4, {1, 3}}, {1, 2, 4, 9, {}}},
                                     .reads = any_ranges(),
                                     .peers = {{1, "host/a"}, {3, "host/b"}}};
    }
    return plan;
}

Metadata any_metadata(Random& random) {
    Metadata metadata;
    metadata.files = {"/dir/model-00001-of-00001.safetensors"};
    for (std::uint64_t n = random.below(8); n > 0; --n) {
        TensorStorageMetadata tensor{
            static_cast<Dtype>(random.below(dtype_count)), any_shape(random), {}, {}};
        for (std::uint64_t c = random.below(4); c > 0; --c)
            tensor.chunks.push_back({any_shape(random), any_shape(random)});
        if (random.chance(2))
            for (std::size_t c = tensor.chunks.size(); c > 0; --c)
                tensor.storage.push_back(any_storage(random, 1));
        metadata.tensors[any_name(random)] = tensor;
    }
    return metadata;
}

RC_GTEST_PROP(Serialise, EveryValueComesBack, (std::uint64_t seed)) {
    Random random(seed);
    const SavePlan save = any_save_plan(random);
    RC_ASSERT(save_plan_from_bytes(to_bytes(save)).value() == save);
    if (save.storage)
        RC_ASSERT(storage_plan_from_bytes(to_bytes(*save.storage), save.items.size()).value() ==
                  *save.storage);
    const WriteResults results = any_results(random);
    RC_ASSERT(write_results_from_bytes(to_bytes(results)).value() == results);
    const LoadPlan load = any_load_plan(random);
    RC_ASSERT(load_plan_from_bytes(to_bytes(load)).value() == load);
    const Metadata metadata = any_metadata(random);
    RC_ASSERT(metadata_from_bytes(to_bytes(metadata)).value() == metadata);
}

// One value of each kind and its reader.
struct Sample {
    Bytes bytes;
    std::function<Result<Bytes>(std::span<const std::byte>)> reread; // parsed and written again
};

std::vector<Sample> samples(std::uint64_t seed) {
    Random random(seed);
    const auto again = [](auto parse) {
        return [parse](std::span<const std::byte> bytes) -> Result<Bytes> {
            auto value = parse(bytes);
            if (!value)
                return std::unexpected(value.error());
            return to_bytes(*value);
        };
    };
    return {{to_bytes(any_save_plan(random)), again(save_plan_from_bytes)},
            {to_bytes(any_results(random)), again(write_results_from_bytes)},
            {to_bytes(any_load_plan(random)), again(load_plan_from_bytes)},
            {to_bytes(any_metadata(random)), again(metadata_from_bytes)}};
}

TEST(Serialise, EveryPrefixAndEveryFlippedByteIsRefused) {
    for (std::uint64_t seed = 0; seed < 8; ++seed)
        for (const Sample& sample : samples(seed)) {
            for (std::size_t size = 0; size < sample.bytes.size(); ++size) {
                const auto result = sample.reread(std::span(sample.bytes).first(size));
                ASSERT_FALSE(result.has_value());
                ASSERT_EQ(result.error().code, Errc::plan_bad_bytes);
            }
            for (std::size_t at = 0; at < sample.bytes.size(); ++at)
                for (const unsigned flip : {1u, 0x80u, 0xFFu}) {
                    Bytes damaged = sample.bytes;
                    damaged[at] ^= static_cast<std::byte>(flip);
                    ASSERT_FALSE(sample.reread(damaged).has_value());
                }
        }
}

TEST(Serialise, OneKindIsNotReadAsAnother) {
    const auto all = samples(1);
    for (std::size_t a = 0; a < all.size(); ++a)
        for (std::size_t b = 0; b < all.size(); ++b)
            EXPECT_EQ(all[a].reread(all[b].bytes).has_value(), a == b);
}

void seal(Bytes& bytes) {
    const std::uint64_t checksum = XXH3_64bits(bytes.data(), bytes.size() - 8);
    std::memcpy(bytes.data() + bytes.size() - 8, &checksum, 8);
}

// With a checksum that matches again, only the parser stands between hostile bytes and the program:
// it refuses, or reads a value that writes back as the same bytes.
TEST(Serialise, HostileBytesWithAGoodChecksumAreRefusedOrRead) {
    const std::uint64_t seed = std::random_device{}();
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    Random random(seed);
    int read = 0;
    for (std::uint64_t round = 0; round < 200; ++round)
        for (const Sample& sample : samples(seed + round))
            for (int change = 0; change < 40; ++change) {
                Bytes bytes = sample.bytes;
                for (std::uint64_t n = 1 + random.below(3); n > 0; --n)
                    bytes[6 + random.below(bytes.size() - 14)] = static_cast<std::byte>(
                        random.chance(2) ? random.below(256) : random.below(4));
                if (random.chance(4))
                    bytes.resize(14 + random.below(bytes.size() - 13));
                seal(bytes);
                if (const auto again = sample.reread(bytes); again)
                    ++read;
                else
                    ASSERT_EQ(again.error().code, Errc::plan_bad_bytes);
            }
    EXPECT_GT(read, 0);
}

TEST(Serialise, CountsAreBelievedOnlyAsFarAsBytesFollow) {
    plan::ByteWriter out(plan::ByteKind::load_plan);
    out.number(std::uint64_t{1} << 40);
    const auto result = load_plan_from_bytes(std::move(out).finish());
    ASSERT_FALSE(result.has_value());
    EXPECT_EQ(result.error().code, Errc::plan_bad_bytes);
    EXPECT_GT(result.error().offset, 0u);
}

// Whether these bytes are this number.
bool reads_number(const std::vector<unsigned>& digits, std::uint64_t expected) {
    plan::ByteWriter out(plan::ByteKind::load_plan);
    for (const unsigned digit : digits)
        out.byte(static_cast<std::uint8_t>(digit));
    const Bytes bytes = std::move(out).finish();
    plan::ByteReader in(bytes, plan::ByteKind::load_plan);
    const std::uint64_t found = in.number();
    return in.finish().has_value() && found == expected;
}

TEST(Serialise, ANumberHasOneForm) {
    EXPECT_TRUE(reads_number({0}, 0));
    EXPECT_TRUE(reads_number({0x7F}, 127));
    EXPECT_TRUE(reads_number({0x80, 1}, 128));
    const std::vector<unsigned> nine(9, 0xFF);
    auto digits = nine;
    digits.push_back(1);
    EXPECT_TRUE(reads_number(digits, ~std::uint64_t{0}));
    digits.back() = 2; // 2^64 and more
    EXPECT_FALSE(reads_number(digits, ~std::uint64_t{0}));
    digits.back() = 0x81; // an eleventh digit
    digits.push_back(1);
    EXPECT_FALSE(reads_number(digits, ~std::uint64_t{0}));
    EXPECT_FALSE(reads_number({0x80, 0}, 0)); // a high zero
    EXPECT_FALSE(reads_number({0x80}, 0));    // ends early
    EXPECT_FALSE(reads_number({}, 0));
}

TEST(Serialise, WhatARankDidIsReadOnlyWhereItCanBe) {
    WriteResults results;
    results.reason = "r";
    results.work.digests = 7;
    const Bytes good = to_bytes(results);
    // From the end: the checksum, the reason with its length, the backend, and each number of the work in one byte.
    const std::size_t reason = good.size() - 8 - 1, backend = reason - 2, digests = backend - 1;
    std::size_t fields = 0;
    WorkReport::each_field([&](const char*, auto) { ++fields; });
    const std::size_t seconds = backend - fields;
    ASSERT_EQ(good[reason], std::byte{'r'});
    ASSERT_EQ(good[digests], std::byte{7});
    const auto read = [](Bytes bytes) {
        seal(bytes);
        return write_results_from_bytes(bytes);
    };
    const auto with = [&](std::size_t at, unsigned value) {
        Bytes bytes = good;
        bytes[at] = static_cast<std::byte>(value);
        return read(bytes);
    };
    EXPECT_EQ(read(good).value(), results);
    EXPECT_EQ(with(seconds, 5).value().work.seconds, 5e-6);
    EXPECT_EQ(with(backend, 2).value().backend, BackendKind::simulated);
    EXPECT_EQ(with(backend, 3).error().code, Errc::plan_bad_bytes);
    EXPECT_EQ(with(reason, 0xFF).error().code, Errc::plan_bad_bytes);
    EXPECT_EQ(with(5, 2).error().code, Errc::plan_bad_bytes); // the version before it
    Bytes ages = good;
    ages.insert(ages.begin() + static_cast<std::ptrdiff_t>(seconds), 7, std::byte{0xFF});
    EXPECT_EQ(read(ages).error().code, Errc::plan_bad_bytes);
    results.work.seconds = 1e300;
    EXPECT_EQ(write_results_from_bytes(to_bytes(results)).value().work.seconds, 0x1p50 / 1e6);
    results.work.seconds = -1;
    EXPECT_EQ(write_results_from_bytes(to_bytes(results)).value().work.seconds, 0);
}

TEST(Serialise, ListsThatShouldBeParallelMustBe) {
    SavePlan plan{0, {WriteItem{}}, {}, StoragePlan{.chunk_bytes = 4096}};
    EXPECT_FALSE(save_plan_from_bytes(to_bytes(plan)).has_value());
    plan.storage->placements = {{0, 0}};
    EXPECT_FALSE(save_plan_from_bytes(to_bytes(plan)).has_value()); // no such file
    plan.storage->files = {{}};
    EXPECT_TRUE(save_plan_from_bytes(to_bytes(plan)).has_value());
}

TEST(Serialise, ChunksAreAPowerOfTwoOfAtLeastABlock) {
    for (const std::uint64_t bytes : {0ull, 1ull, 2048ull, 4097ull, 12288ull, ~0ull}) {
        const SavePlan plan{0, {}, {}, StoragePlan{.chunk_bytes = bytes}};
        EXPECT_FALSE(save_plan_from_bytes(to_bytes(plan)).has_value()) << bytes;
    }
    for (const std::uint64_t bytes : {4096ull, 1ull << 22, 1ull << 63}) {
        const SavePlan plan{0, {}, {}, StoragePlan{.chunk_bytes = bytes}};
        EXPECT_TRUE(save_plan_from_bytes(to_bytes(plan)).has_value()) << bytes;
    }
}

TEST(Serialise, ShapesHaveAtMost64Dimensions) {
    SavePlan plan{0, {WriteItem{.size = Shape(64, 1)}}, {}};
    EXPECT_TRUE(save_plan_from_bytes(to_bytes(plan)).has_value());
    plan.items[0].size = Shape(65, 1);
    const auto refused = save_plan_from_bytes(to_bytes(plan));
    ASSERT_FALSE(refused.has_value());
    EXPECT_EQ(refused.error().code, Errc::plan_bad_bytes);
}

TEST(Serialise, NamesAreStoredOnce) {
    LoadPlan plan;
    for (std::uint64_t n = 0; n < 1000; ++n)
        plan.items.push_back({"model.layers.0.self_attn.q_proj.weight", 0, {n}, {0}, {n}, {1}});
    EXPECT_LT(to_bytes(plan).size(), 15'000u);
}

} // namespace
} // namespace safering
