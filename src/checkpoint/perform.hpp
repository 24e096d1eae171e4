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

/// A whole small file through the page cache. Errors: checkpoint_over_budget above `limit_bytes`,
/// checkpoint_not_a_file.
Result<std::string> read_small_file(Reactor& reactor, const std::string& path, OpenMode mode,
                                    std::uint64_t limit_bytes);

} // namespace safering::checkpoint
