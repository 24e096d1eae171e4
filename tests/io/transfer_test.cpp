// How short and interrupted transfers go on, without any I/O.
#include "io/transfer.hpp"

#include <gtest/gtest.h>

namespace safering::test {

namespace {

std::uint64_t blocks_of_512() {
    return 512;
}
std::uint64_t bytes() {
    return 1;
}

Operation operation(Opcode op, std::uint64_t length, std::uint64_t minimum = 0) {
    Operation made;
    // Never dereferenced here.
    made.request = {.op = op,
                    .file = 3,
                    .data = reinterpret_cast<std::byte*>(std::uintptr_t{1} << 20),
                    .length = length,
                    .offset = 4096,
                    .minimum = minimum};
    begin_transfer(made);
    return made;
}

NextStep after(Operation& made, std::uint64_t moved, std::uint64_t (*alignment)() = &bytes) {
    made.completion = {.result = moved};
    return next_step(made, alignment);
}

NextStep after_error(Operation& made, int error) {
    made.completion = {.error = {error, std::system_category()}};
    return next_step(made, &bytes);
}

void expect_position(const Operation& made, std::uint64_t position) {
    EXPECT_EQ(made.offset, made.request.offset + position);
    EXPECT_EQ(made.data, made.request.data + position);
    EXPECT_EQ(made.length, made.request.length - position);
}

TEST(Transfer, WholeTransferFinishes) {
    Operation made = operation(Opcode::write, 8192);
    expect_position(made, 0);
    EXPECT_EQ(after(made, 8192), NextStep::finish);
    EXPECT_EQ(made.completion.result, 8192u);
}

TEST(Transfer, ShortTransferMovesMemoryLengthAndOffset) {
    Operation made = operation(Opcode::write, 8192);
    EXPECT_EQ(after(made, 1000), NextStep::again);
    expect_position(made, 1000);
    EXPECT_EQ(after(made, 7192), NextStep::finish);
    EXPECT_EQ(made.completion.result, 8192u);
    EXPECT_EQ(made.completion.retries, 1u);
}

TEST(Transfer, DirectTransferResumesOnABlock) {
    Operation made = operation(Opcode::write, 8192);
    EXPECT_EQ(after(made, 1000, &blocks_of_512), NextStep::again);
    expect_position(made, 512);
    EXPECT_EQ(after(made, 1024, &blocks_of_512), NextStep::again);
    expect_position(made, 1536);
    EXPECT_EQ(after(made, 8192 - 1536, &blocks_of_512), NextStep::finish);
    EXPECT_EQ(made.completion.result, 8192u);
}

TEST(Transfer, NeverLongerThanLinuxMovesAtOnce) {
    constexpr std::uint64_t length = std::uint64_t{5} << 30;
    Operation made = operation(Opcode::write, length);
    std::uint64_t total = 0;
    for (;;) {
        ASSERT_LE(made.length, 0x7ffff000u);
        total += made.length;
        if (after(made, made.length, &blocks_of_512) == NextStep::finish)
            break;
    }
    EXPECT_EQ(total, length);
    EXPECT_EQ(made.completion.result, length);
    EXPECT_EQ(made.completion.retries, 0u);
}

TEST(Transfer, LongReadDoesNotStopAtItsMinimum) {
    Operation made = operation(Opcode::read, std::uint64_t{3} << 30, 4096);
    EXPECT_EQ(after(made, 0x7ffff000), NextStep::again);
}

TEST(Transfer, ReadEndsAtMinimumOrFails) {
    Operation enough = operation(Opcode::read, 8192, 5000);
    EXPECT_EQ(after(enough, 5000), NextStep::finish);
    EXPECT_FALSE(enough.completion.error);
    EXPECT_EQ(enough.completion.result, 5000u);

    Operation ended = operation(Opcode::read, 8192, 5000);
    EXPECT_EQ(after(ended, 4999, &blocks_of_512), NextStep::again);
    expect_position(ended, 4608);
    // The same bytes again and no more: the end of the file.
    EXPECT_EQ(after(ended, 4999 - 4608, &blocks_of_512), NextStep::finish);
    EXPECT_EQ(ended.completion.error, make_error_code(Errc::io_unexpected_end));
    EXPECT_EQ(ended.completion.result, 4999u);
}

TEST(Transfer, WriteThatMovesNothingEndsAfterAWhile) {
    Operation made = operation(Opcode::write, 8192);
    int pauses = 0;
    while (after(made, 0) == NextStep::later)
        ++pauses;
    EXPECT_EQ(made.completion.error, make_error_code(Errc::io_no_progress));
    EXPECT_EQ(pauses, 8);
}

TEST(Transfer, ProgressForgivesEarlierIdling) {
    Operation made = operation(Opcode::write, 8192);
    for (int i = 0; i < 100; ++i) {
        ASSERT_EQ(after(made, 0), NextStep::later);
        ASSERT_EQ(after(made, 1), NextStep::again);
    }
}

TEST(Transfer, InterruptionsAreRepeatedButNotForEver) {
    Operation made = operation(Opcode::read, 8192);
    EXPECT_EQ(after_error(made, EINTR), NextStep::again);
    EXPECT_EQ(after_error(made, EAGAIN), NextStep::later);
    EXPECT_GE(pause(made), std::chrono::milliseconds(1));
    int repeats = 0;
    while (after_error(made, EINTR) != NextStep::finish)
        ASSERT_LT(++repeats, 100);
    EXPECT_EQ(made.completion.error.value(), EINTR);
    EXPECT_EQ(made.completion.retries, 2u + repeats);
}

TEST(Transfer, WhatMustNotBeRepeatedIsNot) {
    for (const Opcode op : {Opcode::fsync, Opcode::sync_directory, Opcode::rename, Opcode::unlink,
                            Opcode::make_directory, Opcode::remove_directory, Opcode::close}) {
        Operation made = operation(op, 0);
        EXPECT_EQ(after_error(made, EINTR), NextStep::finish) << name(op);
        EXPECT_EQ(after_error(made, EAGAIN), NextStep::finish) << name(op);
    }
    Operation created = operation(Opcode::open, 0);
    created.request.mode = OpenMode::create;
    EXPECT_EQ(after_error(created, EINTR), NextStep::finish);
}

TEST(Transfer, ErrorReportsWhatHadMoved) {
    Operation made = operation(Opcode::write, 8192);
    EXPECT_EQ(after(made, 4096), NextStep::again);
    EXPECT_EQ(after_error(made, ENOSPC), NextStep::finish);
    EXPECT_EQ(made.completion.error.value(), ENOSPC);
    EXPECT_EQ(made.completion.result, 4096u);
    const Error error = to_error(made.request, made.completion, "model.safetensors");
    EXPECT_EQ(error.message(),
              "write model.safetensors, bytes 4096-12288: No space left on device");
}

} // namespace

} // namespace safering::test
