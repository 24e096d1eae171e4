#include "io/trace.hpp"

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <ctime>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sys/stat.h>
#include <unistd.h>

#include "out_of_memory.hpp"

namespace safering::trace {

namespace {

constexpr std::size_t flush_bytes = std::size_t{64} << 10;

// Between two events, and after the last one of all.
constexpr std::string_view separator = ",\n", end = "\n]\n";

// Locks of the open file, which the kernel lets go when its process ends in whatever way. The bytes need not be there.
enum class Lock : off_t {
    turn, ///< held by who looks at the end of the file and adds to it as that is
    use,  ///< shared by all processes that still add events; whoever has it alone is the last
};

bool set_lock(int file, Lock which, short kind, int command) {
    struct flock wanted{};
    wanted.l_type = kind;
    wanted.l_whence = SEEK_SET;
    wanted.l_start = static_cast<off_t>(which);
    wanted.l_len = 1;
    int done = 0;
    do
        done = ::fcntl(file, command, &wanted);
    while (done != 0 && errno == EINTR);
    return done == 0;
}

std::string json_text(std::string_view text) {
    using nlohmann::json;
    return json(text).dump(-1, ' ', true, json::error_handler_t::replace);
}

double microseconds(std::int64_t ns) {
    return static_cast<double>(ns) / 1000;
}

class File {
  public:
    explicit File(std::string path) : path_(std::move(path)) { open(); }
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    ~File() {
        if (file_ >= 0)
            ::close(file_);
    }

    void append(std::string_view event) {
        const std::lock_guard lock(mutex_);
        if (file_ < 0)
            return;
        text_ += separator;
        text_ += event;
        if (text_.size() >= flush_bytes)
            write_out();
    }
    void flush() {
        const std::lock_guard lock(mutex_);
        write_out();
    }
    /// At the end of the process; the last one of those that share the file closes the bracket. What threads
    /// append later is lost.
    void close() {
        const std::lock_guard lock(mutex_);
        write_out();
        if (file_ < 0)
            return;
        if (set_lock(file_, Lock::turn, F_WRLCK, F_OFD_SETLKW) &&
            set_lock(file_, Lock::use, F_WRLCK, F_OFD_SETLK)) {
            text_ = end;
            write_out();
        }
        if (file_ < 0)
            return;
        // Closing alone would not do where a forked child has the file too.
        for (const Lock held : {Lock::use, Lock::turn})
            set_lock(file_, held, F_UNLCK, F_OFD_SETLK);
        ::close(std::exchange(file_, -1));
    }
    std::string problem() {
        const std::lock_guard lock(mutex_);
        return problem_;
    }

    /// A file that was opened, and the name of one.
    void learn(int file, const std::string& path) {
        const std::lock_guard lock(mutex_);
        names_[file] = path;
    }
    std::string name_of(int file) {
        const std::lock_guard lock(mutex_);
        const auto found = names_.find(file);
        return found == names_.end() ? std::string() : found->second;
    }

    pid_t process() const { return process_; }
    std::uint64_t next_id() {
        const std::lock_guard lock(mutex_);
        return ++ids_;
    }

  private:
    void open() {
        file_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        if (file_ < 0)
            return give_up("open");
        if (!set_lock(file_, Lock::turn, F_WRLCK, F_OFD_SETLKW) ||
            !set_lock(file_, Lock::use, F_RDLCK, F_OFD_SETLKW))
            return give_up("lock");
        // The closing bracket is optional in this format: a process that is killed leaves none.
        struct stat status{};
        std::array<char, end.size()> last{};
        if (::fstat(file_, &status) != 0)
            return give_up("stat");
        const off_t closed = status.st_size - static_cast<off_t>(end.size());
        if (closed > 0 && ::pread(file_, last.data(), last.size(), closed) >= 0 &&
            std::string_view(last.data(), last.size()) == end && ::ftruncate(file_, closed) != 0)
            return give_up("truncate");
        text_ = status.st_size == 0 ? "[\n" : separator;
        text_ += fmt::format(
            R"({{"ph":"M","pid":{},"tid":0,"name":"process_name","args":{{"name":"safering, process {}"}}}})",
            process_, process_);
        write_out();
        if (file_ >= 0)
            set_lock(file_, Lock::turn, F_UNLCK, F_OFD_SETLK);
    }
    void write_out() {
        for (std::string_view left = text_; file_ >= 0 && !left.empty();) {
            const ssize_t wrote = ::write(file_, left.data(), left.size());
            if (wrote < 0 && errno == EINTR)
                continue;
            if (wrote < 0)
                give_up("write");
            else
                left.remove_prefix(static_cast<std::size_t>(wrote));
        }
        text_.clear();
    }
    void give_up(const char* what) {
        problem_ = fmt::format("SAFERING_TRACE: cannot {} {}: {}; there is no further trace", what,
                               path_, std::generic_category().message(errno));
        if (file_ >= 0)
            ::close(file_);
        file_ = -1;
    }

    std::string path_;
    const pid_t process_ = ::getpid();
    std::mutex mutex_;
    int file_ = -1;
    std::string text_;
    std::string problem_;
    std::map<int, std::string> names_;
    std::uint64_t ids_ = 0;
};

std::atomic<File*>& current_file() {
    static std::atomic<File*> current = nullptr;
    return current;
}
void close_at_exit();
// What no memory is left for is missing from the trace.
template <typename F>
void where_there_is_memory(F&& write) {
    (void)had_memory(std::forward<F>(write));
}

// Never destroyed, as threads of reactors may outlive statics. A forked child begins with one of its own: the parent's
// may be locked for ever.
File* file() {
    static const std::string path = [] {
        const char* asked = std::getenv("SAFERING_TRACE");
        if (asked != nullptr && *asked != '\0')
            std::atexit(close_at_exit);
        return std::string(asked == nullptr ? "" : asked);
    }();
    std::atomic<File*>& current = current_file();
    if (path.empty())
        return nullptr;
    File* found = current.load();
    if (found != nullptr && found->process() == ::getpid())
        return found;
    auto made = std::make_unique<File>(path);
    return current.compare_exchange_strong(found, made.get()) ? made.release() : found;
}

// A forked child that traced nothing has nothing to close.
void close_at_exit() {
    File* own = current_file().load();
    if (own != nullptr && own->process() == ::getpid())
        own->close();
}

void append_async(std::string_view category, std::string_view name, std::int64_t begun_ns,
                  std::int64_t ended_ns, const std::string& arguments) {
    File& out = *file();
    const std::string head =
        fmt::format(R"("cat":"{}","id":{},"pid":{},"tid":{},"name":{})", category, out.next_id(),
                    out.process(), ::gettid(), json_text(name));
    out.append(fmt::format(R"({{"ph":"b",{},"ts":{:.3f},"args":{{{}}}}})", head,
                           microseconds(begun_ns), arguments));
    out.append(fmt::format(R"({{"ph":"e",{},"ts":{:.3f}}})", head, microseconds(ended_ns)));
}

} // namespace

bool enabled() {
    try {
        return file() != nullptr;
    } catch (const std::bad_alloc&) {
        return false;
    }
}

std::int64_t now_ns() {
    if (!enabled())
        return 0;
    timespec time{};
    ::clock_gettime(CLOCK_MONOTONIC, &time);
    return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

Span::~Span() {
    if (begun_ns_ == 0)
        return;
    where_there_is_memory([&] {
        const std::string bytes =
            bytes_ == 0 ? std::string() : fmt::format(R"("bytes":{})", bytes_);
        file()->append(fmt::format(
            R"({{"ph":"X","pid":{},"tid":{},"name":{},"ts":{:.3f},"dur":{:.3f},"args":{{{}}}}})",
            file()->process(), ::gettid(), json_text(name_), microseconds(begun_ns_),
            microseconds(now_ns() - begun_ns_), bytes));
    });
}

void Interval::begin(std::string name) {
    name_ = std::move(name);
    begun_ns_ = now_ns();
}

void Interval::end() {
    if (begun_ns_ == 0)
        return;
    where_there_is_memory([&] {
        append_async("job", name_, begun_ns_, now_ns(), {});
        flush();
    });
    begun_ns_ = 0;
}

void add(const Request& request, const Completion& completion, std::int64_t begun_ns) {
    if (begun_ns == 0)
        return;
    where_there_is_memory([&] {
        File& out = *file();
        if (request.op == Opcode::open && !completion.error)
            out.learn(static_cast<int>(completion.result), request.path);
        std::string arguments =
            fmt::format(R"("file":{})",
                        json_text(request.path.empty() ? out.name_of(request.file) : request.path));
        if (request.length != 0)
            arguments += fmt::format(R"(,"offset":{},"bytes":{})", request.offset, request.length);
        if (completion.error)
            arguments += fmt::format(R"(,"error":{})", json_text(completion.error.message()));
        append_async("io", name(request.op), begun_ns, now_ns(), arguments);
    });
}

void flush() {
    if (enabled())
        file()->flush();
}

void add_problem(std::vector<std::string>& notes) {
    if (!enabled())
        return;
    if (std::string problem = file()->problem(); !problem.empty())
        notes.push_back(std::move(problem));
}

} // namespace safering::trace
