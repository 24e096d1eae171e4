// Blocking I/O for the steps before and after the data: open files that close themselves, and requests
// whose failure is an Error.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <safering/reactor.hpp>

namespace safering::checkpoint {

/// The completion, or its failure as an Error. Not from the reactor's thread.
Result<Completion> perform(Reactor& reactor, Request request);
/// All end before the first failure is reported.
Result<std::vector<Completion>> perform_all(Reactor& reactor, std::vector<Request> requests);

/// There is nothing under that name.
inline bool is_absent(const Error& error) {
    return error.code == std::errc::no_such_file_or_directory;
}
inline bool is_absent(const Completion& completion) {
    return completion.error == std::errc::no_such_file_or_directory;
}
/// The system could not look: it says nothing of what is under that name.
inline bool could_not_look(const Error& error) {
    return error.code.category() != safering_category() && !is_absent(error) &&
           error.code != std::errc::not_a_directory &&
           error.code != std::errc::too_many_symbolic_link_levels;
}
/// The directory that was to be removed or replaced has something in it; a file system may say either.
inline bool is_not_empty(const Completion& completion) {
    return completion.error == std::errc::directory_not_empty ||
           completion.error == std::errc::file_exists;
}

/// What a file system does not grant, and a trace that cannot be written, in words for a report.
std::vector<std::string> environment_notes(const FileSystemInfo& info);

/// A descriptor that is closed when it goes out of scope. What was written through it is durable by then, or
/// given up, so that closing has nothing left to report. The reactor must outlive it.
class OpenFile {
  public:
    OpenFile() = default;
    OpenFile(Reactor& reactor, const Completion& opened);
    OpenFile(OpenFile&& other) noexcept;
    OpenFile& operator=(OpenFile&& other) noexcept;
    ~OpenFile();

    int descriptor() const { return descriptor_; }
    const FileStatus& status() const { return status_; }
    bool direct() const { return direct_; }

  private:
    Reactor* reactor_ = nullptr;
    int descriptor_ = -1;
    FileStatus status_;
    bool direct_ = false;
};

/// Opens together; what did open is closed again where one fails.
Result<std::vector<OpenFile>> open_all(Reactor& reactor, std::vector<Request> requests);

/// The smallest unit of direct transfers that is fine on every file system that the reactor calls direct.
inline constexpr std::uint64_t block_bytes = 4096;

inline constexpr const char* too_many_files_hint =
    "a checkpoint's files are open together; raise the limit of open files (ulimit -n)";

/// What a manifest, an index or a redo record may have, at most: those of millions of tensors stay below it.
inline constexpr std::uint64_t record_limit_bytes = std::uint64_t{1} << 30;
/// Whether readers will take a record of this size, asked before one is written: checkpoint_over_budget.
Result<void> check_record_size(std::string_view name, std::uint64_t bytes);

/// A whole small file through the page cache. Errors: checkpoint_over_budget above `limit_bytes`,
/// checkpoint_not_a_file.
Result<std::string> read_small_file(Reactor& reactor, const std::string& path, OpenMode mode,
                                    std::uint64_t limit_bytes);

} // namespace safering::checkpoint
