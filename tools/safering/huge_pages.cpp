#include "huge_pages.hpp"

#include <cstdint>
#include <fstream>

#include <fmt/format.h>
#include <sys/mman.h>

#include <safering/byte_range.hpp>

namespace safering::tools {

namespace {

constexpr std::size_t huge_page_bytes = std::size_t{2} << 20;

// The selected word of "always [madvise] never".
std::string read_setting() {
    std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
    std::string line;
    std::getline(file, line);
    const std::size_t begin = line.find('[');
    const std::size_t end = line.find(']');
    return begin < end && end != std::string::npos ? line.substr(begin + 1, end - begin - 1) : "";
}

// AnonHugePages of the mapping that holds `address`.
bool lies_on_huge_page(std::uintptr_t address) {
    std::ifstream file("/proc/self/smaps");
    bool inside = false;
    for (std::string line; std::getline(file, line);) {
        unsigned long begin = 0;
        unsigned long end = 0;
        unsigned long kib = 0;
        if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2)
            inside = begin <= address && address < end;
        else if (inside && std::sscanf(line.c_str(), "AnonHugePages: %lu kB", &kib) == 1)
            return kib != 0;
    }
    return false;
}

bool try_huge_page() {
    // Twice the size always holds one aligned huge page.
    void* mapping = mmap(nullptr, 2 * huge_page_bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED)
        return false;
    const std::uintptr_t aligned =
        round_up(reinterpret_cast<std::uintptr_t>(mapping), huge_page_bytes);
    void* page = reinterpret_cast<void*>(aligned);
    bool granted = false;
    if (madvise(page, huge_page_bytes, MADV_HUGEPAGE) == 0) {
        *static_cast<volatile char*>(page) = 1;
        granted = lies_on_huge_page(aligned);
    }
    munmap(mapping, 2 * huge_page_bytes);
    return granted;
}

} // namespace

HugePages probe_huge_pages() {
    return {read_setting(), try_huge_page()};
}

std::string HugePages::words() const {
    if (granted)
        return fmt::format("yes (transparent, setting \"{}\")", setting);
    if (setting == "never")
        return "no: transparent huge pages are off; direct I/O is about half as fast; as root: "
               "echo "
               "madvise > /sys/kernel/mm/transparent_hugepage/enabled";
    return fmt::format(
        "no (setting \"{}\"): the kernel had none to give; direct I/O is about half as "
        "fast",
        setting);
}

Json to_json(const HugePages& huge_pages) {
    return {{"granted", huge_pages.granted}, {"setting", huge_pages.setting}};
}

} // namespace safering::tools
