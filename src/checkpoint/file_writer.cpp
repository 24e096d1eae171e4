#include "checkpoint/file_writer.hpp"

#include <algorithm>
#include <cstring>

#include <unistd.h>

#include <safering/byte_range.hpp>

#include "checkpoint/step_name.hpp"
#include "io/huge_memory.hpp"
#include "out_of_memory.hpp"
#include "plan/copy_kernels.hpp"

namespace safering::checkpoint {

namespace {

// One is filled while three are in transfer: more do not make the disk faster (measured).
constexpr std::size_t most_buffers = 4;

// Allocated ahead where the size is not known: rarely enough that waiting for what is in flight costs
// nothing, and not so much that a disk looks full long before it is.
constexpr std::uint64_t least_step = std::uint64_t{64} << 20;
constexpr std::uint64_t largest_step = std::uint64_t{1} << 30;

constexpr std::string_view part_suffix = "part";

bool is_older_part(std::string_view name, std::string_view target, std::string_view attempt) {
    const auto found = parse_hidden_name(name, part_suffix);
    return found && found->target == target && found->id < attempt;
}

} // namespace

FileWriter::FileWriter(std::shared_ptr<Reactor> reactor, TargetPath target)
    : reactor_(std::move(reactor)), target_(std::move(target)),
      part_(join(target_.parent, hidden_name(target_.name, attempt_, part_suffix))),
      process_(::getpid()) {}

FileWriter::~FileWriter() {
    // What is left then has a name that the next file of this target tidies up.
    (void)or_out_of_memory([this] { return abandon(); });
}

Result<std::unique_ptr<FileWriter>> FileWriter::create(std::shared_ptr<Reactor> reactor,
                                                       const std::string& path,
                                                       std::uint64_t expected_bytes) {
    std::unique_ptr<FileWriter> writer(
        new FileWriter(std::move(reactor), make_target_path(path, LastLink::keep)));
    if (auto opened = writer->open(expected_bytes); !opened)
        return std::unexpected(std::move(opened.error()));
    return writer;
}

Result<void> FileWriter::open(std::uint64_t expected_bytes) {
    // Now, and not when all has been written.
    const Completion existing = reactor_->wait({.op = Opcode::stat, .path = target_.path});
    if (!existing.error && existing.status.kind == FileKind::directory)
        return std::unexpected(Error{.code = std::make_error_code(std::errc::is_a_directory),
                                     .operation = "write file",
                                     .file = target_.path});
    const auto file_system = reactor_->file_system(target_.parent);
    if (!file_system)
        return std::unexpected(file_system.error());
    allocates_ = file_system->allocate;
    auto opened = perform(
        *reactor_,
        {.op = Opcode::open, .mode = OpenMode::create, .caching = Caching::direct, .path = part_});
    if (!opened)
        return std::unexpected(std::move(opened.error()));
    file_ = OpenFile(*reactor_, *opened);
    exists_ = true;
    buffer_bytes_ = reactor_->info().buffer_bytes;
    std::size_t buffers = most_buffers;
    if (expected_bytes != 0 && expected_bytes <= buffer_bytes_) {
        buffer_bytes_ = round_up(expected_bytes, block_bytes);
        buffers = 1;
    } else if (expected_bytes != 0) {
        if (auto allocated = allocate(round_up(expected_bytes, block_bytes)); !allocated)
            return allocated;
    }
    auto memory = io::allocate_huge(buffers * buffer_bytes_);
    if (!memory)
        return std::unexpected(std::move(memory.error()));
    memory_ = std::move(*memory);
    for (std::size_t i = buffers; i-- > 0;)
        free_.push_back(memory_.get() + i * buffer_bytes_);
    return {};
}

bool FileWriter::forked() const {
    return ::getpid() != process_;
}

Result<void> FileWriter::failed(Error error) {
    const std::lock_guard lock(mutex_);
    if (!error_)
        error_ = std::move(error);
    return std::unexpected(*error_);
}

Result<void> FileWriter::acquire() {
    std::unique_lock lock(mutex_);
    ended_.wait(lock, [this] { return error_ || !free_.empty(); });
    if (error_)
        return std::unexpected(*error_);
    current_ = free_.back();
    free_.pop_back();
    return {};
}

Result<void> FileWriter::write(std::span<const std::byte> bytes) {
    if (forked())
        return fail(Errc::io_forked, "write file");
    SAFERING_ASSERT(exists_);
    while (!bytes.empty()) {
        if (current_ == nullptr)
            if (auto acquired = acquire(); !acquired)
                return acquired;
        const std::size_t count = std::min(bytes.size(), buffer_bytes_ - filled_);
        if (count >= plan::streaming_min_bytes)
            plan::copy_streaming(current_ + filled_, bytes.data(), count);
        else
            std::memcpy(current_ + filled_, bytes.data(), count);
        filled_ += count;
        bytes = bytes.subspan(count);
        if (filled_ == buffer_bytes_)
            if (auto sent = send(); !sent)
                return sent;
    }
    return {};
}

Result<void> FileWriter::allocate(std::uint64_t end) {
    if (!allocates_ || end <= allocated_)
        return {};
    auto done = perform(*reactor_, {.op = Opcode::allocate,
                                    .file = file_.descriptor(),
                                    .length = end - allocated_,
                                    .offset = allocated_,
                                    .path = target_.path});
    if (!done)
        return std::unexpected(std::move(done.error()));
    allocated_ = end;
    return {};
}

// Hands over the buffer that is being filled.
Result<void> FileWriter::send() {
    plan::streaming_fence();
    std::size_t length = filled_;
    if (file_.direct() && length % block_bytes != 0) {
        length = round_up(length, block_bytes);
        std::memset(current_ + filled_, 0, length - filled_);
    }
    const std::uint64_t end = offset_ + length;
    if (end > allocated_ && length == buffer_bytes_) { // more may follow
        const std::uint64_t step = std::clamp(allocated_, least_step, largest_step);
        auto allocated = allocate(std::max(end, allocated_ + step));
        if (!allocated && allocated.error().code == std::errc::no_space_on_device)
            allocated = allocate(end);
        if (!allocated)
            return failed(std::move(allocated.error()));
    }
    const Request shown{
        .op = Opcode::write, .length = length, .offset = offset_, .path = target_.path};
    {
        const std::lock_guard lock(mutex_);
        ++in_flight_;
    }
    const bool submitted = had_memory([&] {
        reactor_->submit(
            {.op = Opcode::write,
             .file = file_.descriptor(),
             .data = current_,
             .length = length,
             .offset = offset_},
            [this, shown, buffer = current_](const Completion& completion) {
                const std::lock_guard lock(mutex_);
                if (completion.error && !error_)
                    error_ = to_error(shown, completion);
                free_.push_back(buffer); // where it was before
                --in_flight_;
                ended_.notify_all(); // under the lock: the writer may be gone right after
            });
    });
    if (!submitted) {
        const std::lock_guard lock(mutex_);
        --in_flight_;
        if (!error_)
            error_ = out_of_memory();
        return std::unexpected(*error_);
    }
    current_ = nullptr;
    offset_ += filled_;
    filled_ = 0;
    return {};
}

Result<void> FileWriter::settle() {
    std::unique_lock lock(mutex_);
    ended_.wait(lock, [this] { return in_flight_ == 0; });
    if (error_)
        return std::unexpected(*error_);
    return {};
}

Result<void> FileWriter::finish_file() {
    const std::uint64_t size = offset_ + filled_;
    if (filled_ != 0) {
        if (auto sent = send(); !sent)
            return sent;
    }
    if (auto settled = settle(); !settled)
        return settled;
    // Whatever is known of its end: an allocation that failed may have moved it (ext4 does, on a full disk).
    for (Request step :
         {Request{.op = Opcode::truncate, .length = size}, Request{.op = Opcode::fsync}}) {
        step.file = file_.descriptor();
        step.path = target_.path;
        if (auto done = perform(*reactor_, std::move(step)); !done)
            return std::unexpected(std::move(done.error()));
    }
    file_ = {};
    auto renamed =
        perform(*reactor_,
                {.op = Opcode::rename, .replace = true, .path = part_, .new_path = target_.path});
    if (!renamed)
        return std::unexpected(std::move(renamed.error()));
    exists_ = false;
    auto synced = perform(*reactor_, {.op = Opcode::sync_directory, .path = target_.parent});
    if (!synced)
        return std::unexpected(std::move(synced.error()));
    return {};
}

Result<std::vector<std::string>> FileWriter::commit() {
    if (forked())
        return fail(Errc::io_forked, "write file");
    SAFERING_ASSERT(exists_);
    if (auto finished = finish_file(); !finished) {
        // The first error is the one to report.
        (void)abandon();
        return std::unexpected(std::move(finished.error()));
    }
    return remove_older_parts();
}

Result<void> FileWriter::abandon() {
    if (forked() || !exists_)
        return {};
    (void)settle(); // what failed is of no consequence now
    file_ = {};
    exists_ = false;
    const auto unlinked = perform(*reactor_, {.op = Opcode::unlink, .path = part_});
    if (!unlinked && !is_absent(unlinked.error()))
        return std::unexpected(unlinked.error());
    return {};
}

std::vector<std::string> FileWriter::remove_older_parts() {
    std::vector<std::string> notes;
    const auto listed = perform(*reactor_, {.op = Opcode::list, .path = target_.parent});
    if (!listed)
        return {listed.error().message()};
    for (const DirectoryEntry& entry : listed->entries) {
        if (!is_older_part(entry.name, target_.name, attempt_))
            continue;
        const auto unlinked =
            perform(*reactor_, {.op = Opcode::unlink, .path = join(target_.parent, entry.name)});
        if (!unlinked && !is_absent(unlinked.error()))
            notes.push_back(unlinked.error().message());
    }
    return notes;
}

} // namespace safering::checkpoint
