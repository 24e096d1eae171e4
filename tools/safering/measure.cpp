#include "measure.hpp"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string_view>

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

namespace safering::tools {

namespace {

// A line "Name:  123 kB" of a file in /proc, in bytes; 0 where there is none.
std::uint64_t read_kib(const char* path, std::string_view field) {
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
        if (!line.starts_with(field))
            continue;
        const std::size_t digits = line.find_first_of("0123456789");
        std::uint64_t kib = 0;
        if (digits != std::string::npos)
            std::from_chars(line.data() + digits, line.data() + line.size(), kib);
        return kib * 1024;
    }
    return 0;
}

// Sets VmHWM back to the resident size of now.
bool reset_peak() {
    std::ofstream file("/proc/self/clear_refs");
    file << "5" << std::flush;
    return file.good();
}

double seconds(const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
}

double cpu_now() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

[[noreturn]] void throw_system_error(int error, const char* operation, const std::string& file) {
    throw Exception(
        {.code = {error, std::system_category()}, .operation = operation, .file = file});
}

template <typename T>
T middle(std::vector<T> values) {
    const auto at = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::ranges::nth_element(values, at);
    return *at;
}

} // namespace

std::uint64_t resident_bytes() {
    return read_kib("/proc/self/status", "VmRSS:");
}
std::uint64_t available_bytes() {
    return read_kib("/proc/meminfo", "MemAvailable:");
}

Measurement::Measurement(std::uint64_t baseline_bytes)
    : baseline_bytes_(baseline_bytes), peak_was_reset_(reset_peak()), cpu_begin_(cpu_now()),
      begin_(now()) {}

Cost Measurement::stop() const {
    Cost cost{.seconds = now() - begin_, .cpu_seconds = cpu_now() - cpu_begin_, .extra_bytes = {}};
    if (peak_was_reset_) {
        const std::uint64_t peak = read_kib("/proc/self/status", "VmHWM:");
        cost.extra_bytes = peak - std::min(peak, baseline_bytes_);
    }
    return cost;
}

Cost median(const std::vector<Cost>& costs) {
    std::vector<double> seconds;
    std::vector<double> cpu_seconds;
    std::vector<std::optional<std::uint64_t>> extra_bytes;
    for (const Cost& cost : costs) {
        seconds.push_back(cost.seconds);
        cpu_seconds.push_back(cost.cpu_seconds);
        extra_bytes.push_back(cost.extra_bytes);
    }
    return {middle(std::move(seconds)), middle(std::move(cpu_seconds)),
            middle(std::move(extra_bytes))};
}

void drop_from_cache(const std::string& directory) {
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
        const int file = open(entry.path().c_str(), O_RDONLY | O_CLOEXEC);
        if (file < 0)
            throw_system_error(errno, "open", entry.path());
        // Pages that are dirty stay, so they are written back first.
        const int failure =
            fsync(file) != 0 ? errno : posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
        close(file);
        if (failure != 0)
            throw_system_error(failure, "drop from the page cache", entry.path());
    }
    if (error)
        throw_system_error(error.value(), "list", directory);
}

} // namespace safering::tools
