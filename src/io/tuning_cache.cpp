// The cache of measurements: a file for each file system and backend, so that two processes never have to agree
// on one. It is written whole beside its place and renamed into it; nothing in it is believed that could not
// have been measured here.
#include <safering/tuning.hpp>

#include <array>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "io/descriptor.hpp"
#include "io/mount_name.hpp"
#include "io/posix_ops.hpp"
#include "out_of_memory.hpp"

namespace safering {

namespace {

using Json = nlohmann::ordered_json;

constexpr unsigned format_version = 2;
constexpr std::size_t most_bytes = std::size_t{64} << 10;
// Of what a row may ask for: a file must not make a reactor that no measurement would.
constexpr unsigned most_in_flight = 256;
constexpr std::size_t most_rows = 64;

std::string environment(const char* name) {
    const char* value = std::getenv(name); // NOLINT(concurrency-mt-unsafe): nothing sets any here
    return value == nullptr ? std::string() : std::string(value);
}

// The XDG Base Directory Specification; relative paths are to be ignored. Empty where there is none.
std::string cache_directory() {
    if (std::string given = environment("XDG_CACHE_HOME"); given.starts_with('/'))
        return given + "/safering";
    if (std::string home = environment("HOME"); home.starts_with('/'))
        return home + "/.cache/safering";
    return {};
}

std::string cache_name(const std::string& file_system, BackendKind backend) {
    const std::string key = fmt::format("{} by {}", file_system, name(backend));
    return fmt::format("tuning-{:016x}.json", XXH64(key.data(), key.size(), 0));
}

std::string to_text(const Tuning& tuning) {
    Json rows = Json::array();
    for (const TuningRow& row : tuning.rows)
        rows.push_back({{"block_bytes", row.block_bytes},
                        {"in_flight", row.in_flight},
                        {"threads", row.threads},
                        {"write_rate", row.write_rate},
                        {"read_rate", row.read_rate}});
    const Json json{
        {"safering_tuning", format_version}, {"file_system", tuning.file_system},
        {"backend", name(tuning.backend)},   {"measured", tuning.measured},
        {"file_bytes", tuning.file_bytes},   {"rows", std::move(rows)},
        {"chosen", tuning.chosen},
    };
    return json.dump(1, ' ', true, Json::error_handler_t::replace) + "\n";
}

// Members of a JSON value that may be anything; remembers the first that is not as it must be.
class Reading {
  public:
    std::uint64_t number(const Json& from, const char* key, std::uint64_t least,
                         std::uint64_t most) {
        const Json* value = member(from, key);
        if (value == nullptr || !value->is_number_unsigned() ||
            value->get<std::uint64_t>() < least || value->get<std::uint64_t>() > most) {
            wrong(key);
            return least;
        }
        return value->get<std::uint64_t>();
    }
    double rate(const Json& from, const char* key) {
        const Json* value = member(from, key);
        if (value == nullptr || !value->is_number() || !std::isfinite(value->get<double>()) ||
            value->get<double>() < 0) {
            wrong(key);
            return 0;
        }
        return value->get<double>();
    }
    std::string text(const Json& from, const char* key) {
        const Json* value = member(from, key);
        if (value == nullptr || !value->is_string()) {
            wrong(key);
            return {};
        }
        return value->get<std::string>();
    }
    const Json& rows(const Json& from) {
        static const Json none = Json::array();
        const Json* value = member(from, "rows");
        if (value != nullptr && value->is_array() && !value->empty() && value->size() <= most_rows)
            return *value;
        wrong("rows");
        return none;
    }
    void wrong(const char* key) {
        if (wrong_.empty())
            wrong_ = key;
    }
    const std::string& first_wrong() const { return wrong_; }

  private:
    static const Json* member(const Json& from, const char* key) {
        if (!from.is_object())
            return nullptr;
        const auto found = from.find(key);
        return found == from.end() ? nullptr : &*found;
    }
    std::string wrong_;
};

std::uint64_t block_bytes(Reading& read, const Json& row) {
    const std::uint64_t bytes =
        read.number(row, "block_bytes", 4096, ReactorOptions{}.buffer_bytes);
    if (bytes % 4096 != 0)
        read.wrong("block_bytes");
    return bytes;
}

// Why it is none of this file system and backend, or the measurement.
std::expected<Tuning, std::string> from_text(const std::string& text,
                                             const std::string& file_system, BackendKind backend) {
    const Json root = Json::parse(text, nullptr, false);
    Reading read;
    if (!root.is_object())
        return std::unexpected("it is not a JSON object");
    read.number(root, "safering_tuning", format_version, format_version);
    Tuning out{.file_system = read.text(root, "file_system"),
               .backend = backend,
               .measured = read.text(root, "measured"),
               .file_bytes = read.number(root, "file_bytes", 1, SIZE_MAX),
               .rows = {},
               .chosen = 0};
    if (read.text(root, "backend") != name(backend))
        read.wrong("backend");
    for (const Json& row : read.rows(root))
        out.rows.push_back(
            {.block_bytes = block_bytes(read, row),
             .in_flight = static_cast<unsigned>(read.number(row, "in_flight", 1, most_in_flight)),
             .threads = static_cast<unsigned>(read.number(row, "threads", 1, most_in_flight)),
             .write_rate = read.rate(row, "write_rate"),
             .read_rate = read.rate(row, "read_rate")});
    out.chosen = read.number(root, "chosen", 0, std::max<std::size_t>(out.rows.size(), 1) - 1);
    if (out.file_system != file_system)
        read.wrong("file_system");
    if (out.measured.empty() || out.measured.size() > 32 || escaped(out.measured) != out.measured)
        read.wrong("measured");
    if (!read.first_wrong().empty())
        return std::unexpected(
            fmt::format("its {} is not of a measurement of this file system by this version",
                        read.first_wrong()));
    return out;
}

// What is there, or why it cannot be read. O_NONBLOCK: it may be anything, a pipe as well.
std::expected<std::string, std::error_code> read_file(const std::string& path) {
    const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
    struct stat status{};
    if (!file || ::fstat(file.get(), &status) != 0)
        return std::unexpected(posix::last_error());
    if (!S_ISREG(status.st_mode))
        return std::unexpected(std::make_error_code(std::errc::invalid_argument));
    std::string text(most_bytes + 1, '\0');
    std::size_t size = 0;
    while (size < text.size()) {
        const ssize_t got = ::read(file.get(), text.data() + size, text.size() - size);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return std::unexpected(posix::last_error());
        if (got == 0)
            break;
        size += static_cast<std::size_t>(got);
    }
    if (size > most_bytes)
        return std::unexpected(std::make_error_code(std::errc::file_too_large));
    text.resize(size);
    return text;
}

Result<void> write_all(int file, std::string_view text) {
    while (!text.empty()) {
        const ssize_t wrote = ::write(file, text.data(), text.size());
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote < 0)
            return std::unexpected(Error{.code = posix::last_error()});
        text.remove_prefix(static_cast<std::size_t>(wrote));
    }
    if (::fsync(file) != 0)
        return std::unexpected(Error{.code = posix::last_error()});
    return {};
}

Result<std::string> store(const Tuning& tuning) {
    const auto failed = [](std::error_code code, const std::string& path) {
        return std::unexpected(
            Error{.code = code, .operation = "keep the measurement in", .file = path});
    };
    const std::string directory = cache_directory();
    if (directory.empty())
        return fail(std::make_error_code(std::errc::no_such_file_or_directory),
                    "keep the measurement",
                    "neither XDG_CACHE_HOME nor HOME names a directory, as an absolute path");
    std::error_code code;
    std::filesystem::create_directories(directory, code);
    if (code)
        return failed(code, directory);
    const std::string path =
        fmt::format("{}/{}", directory, cache_name(tuning.file_system, tuning.backend));
    std::random_device random;
    const std::string temporary = fmt::format("{}.{:08x}{:08x}.tmp", path, random(), random());
    const Descriptor file(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
    if (!file)
        return failed(posix::last_error(), directory);
    auto written = write_all(file.get(), to_text(tuning));
    if (written && ::rename(temporary.c_str(), path.c_str()) != 0)
        written = std::unexpected(Error{.code = posix::last_error()});
    if (!written) {
        ::unlink(temporary.c_str());
        return failed(written.error().code, path);
    }
    return path;
}

bool is_off() {
    return environment("SAFERING_TUNING") == "off";
}

} // namespace

Result<std::string> store_tuning(const Tuning& tuning) {
    SAFERING_ASSERT(tuning.chosen < tuning.rows.size());
    return or_out_of_memory([&] { return store(tuning); });
}

FoundTuning find_tuning(const std::string& path, BackendKind backend) {
    if (is_off())
        return {.reason = "SAFERING_TUNING is off"};
    const std::string directory = cache_directory();
    if (directory.empty())
        return {.reason = "neither XDG_CACHE_HOME nor HOME names a directory"};
    FoundTuning found{.file_system = file_system_name(path)};
    const std::string file =
        fmt::format("{}/{}", directory, cache_name(found.file_system, backend));
    const auto text = read_file(file);
    if (!text) {
        found.reason = text.error() == std::errc::no_such_file_or_directory
                           ? fmt::format("nothing was measured with {}", name(backend))
                           : fmt::format("{}: {}", file, text.error().message());
        return found;
    }
    auto tuning = from_text(*text, found.file_system, backend);
    if (tuning)
        found.tuning = std::move(*tuning);
    else
        found.reason = fmt::format("{}: {}", file, tuning.error());
    return found;
}

// `automatic` shows what it comes to only in a reactor that runs, so there is one before the look into the cache.
Result<std::unique_ptr<Reactor>> create_tuned_reactor(const std::string& path,
                                                      BackendChoice backend) {
    return or_out_of_memory([&]() -> Result<std::unique_ptr<Reactor>> {
        auto usual = Reactor::create({.backend = backend, .origin = "defaults"});
        if (!usual)
            return usual;
        const FoundTuning found = find_tuning(path, (*usual)->info().backend);
        if (!found.tuning)
            return usual;
        ReactorOptions options = options_of(found.tuning->rows[found.tuning->chosen]);
        options.backend = backend;
        options.origin =
            fmt::format("measured {} on {}", found.tuning->measured, found.tuning->file_system);
        auto tuned = Reactor::create(options);
        return tuned ? std::move(tuned) : std::move(usual);
    });
}

} // namespace safering
