#include "checkpoint/perform.hpp"

#include <optional>

#include <fmt/format.h>

#include "io/trace.hpp"
#include "large_memory.hpp"

namespace safering::checkpoint {

Result<void> check_record_size(std::string_view name, std::uint64_t bytes) {
    if (bytes <= record_limit_bytes)
        return {};
    return std::unexpected(Error{
        .code = Errc::checkpoint_over_budget,
        .operation = "prepare records",
        .file = std::string(name),
        .detail = fmt::format("it would have {} bytes, and readers take {}: save without digests, "
                              "or with tensors sharded along their first dimension or in shard "
                              "files, whose extents are whole blocks and need few of them",
                              bytes, record_limit_bytes)});
}

Result<Completion> perform(Reactor& reactor, Request request) {
    Completion completion = reactor.wait(request);
    if (completion.error)
        return std::unexpected(to_error(request, completion));
    return completion;
}

Result<std::vector<Completion>> perform_all(Reactor& reactor, std::vector<Request> requests) {
    auto completions = reactor.wait_all(requests);
    for (std::size_t i = 0; i < completions.size(); ++i)
        if (completions[i].error)
            return std::unexpected(to_error(requests[i], completions[i]));
    return completions;
}

std::vector<std::string> environment_notes(const FileSystemInfo& info) {
    std::vector<std::string> notes;
    if (!info.direct)
        notes.push_back(info.type + " refuses O_DIRECT; the page cache was used");
    if (!info.allocate)
        notes.push_back(info.type + " refuses fallocate; a full disk shows late");
    trace::add_problem(notes);
    return notes;
}

OpenFile::OpenFile(Reactor& reactor, const Completion& opened)
    : reactor_(&reactor), descriptor_(static_cast<int>(opened.result)), status_(opened.status),
      direct_(opened.direct) {}

OpenFile::OpenFile(OpenFile&& other) noexcept
    : reactor_(other.reactor_), descriptor_(std::exchange(other.descriptor_, -1)),
      status_(other.status_), direct_(other.direct_) {}

OpenFile& OpenFile::operator=(OpenFile&& other) noexcept {
    std::swap(reactor_, other.reactor_);
    std::swap(descriptor_, other.descriptor_);
    std::swap(status_, other.status_);
    std::swap(direct_, other.direct_);
    return *this;
}

OpenFile::~OpenFile() {
    if (descriptor_ >= 0)
        reactor_->close(descriptor_); // waits, so that who destroys a reader may unmount
}

Result<std::vector<OpenFile>> open_all(Reactor& reactor, std::vector<Request> requests) {
    std::vector<OpenFile> files; // has room before there is something to close
    files.reserve(requests.size());
    const auto completions = reactor.wait_all(requests);
    std::optional<Error> error;
    for (std::size_t i = 0; i < completions.size(); ++i)
        if (!completions[i].error)
            files.emplace_back(reactor, completions[i]);
        else if (!error)
            error = to_error(requests[i], completions[i]);
    if (error && error->code == std::errc::too_many_files_open)
        error->detail = too_many_files_hint;
    if (error)
        return std::unexpected(std::move(*error));
    return files;
}

Result<std::string> read_small_file(Reactor& reactor, const std::string& path, OpenMode mode,
                                    std::uint64_t limit_bytes) {
    auto opened = perform(reactor, {.op = Opcode::open, .mode = mode, .path = path});
    if (!opened)
        return std::unexpected(std::move(opened.error()));
    const OpenFile file(reactor, *opened);
    if (file.status().kind != FileKind::regular)
        return std::unexpected(
            Error{.code = Errc::checkpoint_not_a_file, .operation = "read", .file = path});
    if (file.status().size > limit_bytes)
        return std::unexpected(Error{
            .code = Errc::checkpoint_over_budget,
            .operation = "read",
            .file = path,
            .detail = fmt::format("{} bytes, the limit is {}", file.status().size, limit_bytes)});
    std::string text;
    reserve_large(text, file.status().size);
    text.resize(file.status().size);
    if (text.empty())
        return text;
    auto read = perform(reactor, {.op = Opcode::read,
                                  .file = file.descriptor(),
                                  .data = reinterpret_cast<std::byte*>(text.data()),
                                  .length = text.size(),
                                  .path = path});
    if (!read)
        return std::unexpected(std::move(read.error()));
    return text;
}

} // namespace safering::checkpoint
