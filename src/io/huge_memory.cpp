#include "io/huge_memory.hpp"

#include <cerrno>
#include <cstdint>

#include <sys/mman.h>

#include <safering/byte_range.hpp>

#include "large_memory.hpp"

namespace safering::io {

Result<std::shared_ptr<std::byte>> allocate_huge(std::size_t bytes) {
    if (bytes == 0)
        return std::shared_ptr<std::byte>();
    if (bytes > SIZE_MAX - 2 * huge_page_bytes)
        return fail(std::error_code(ENOMEM, std::system_category()), "allocate");
    const std::size_t mapped = round_up(bytes, huge_page_bytes) + huge_page_bytes;
    void* memory =
        ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return fail(std::error_code(errno, std::system_category()), "allocate",
                    std::to_string(bytes) + " bytes for tensors");
    auto* aligned = reinterpret_cast<std::byte*>(
        round_up(reinterpret_cast<std::uintptr_t>(memory), huge_page_bytes));
    advise_huge(aligned, round_up(bytes, huge_page_bytes));
    return std::shared_ptr<std::byte>(aligned,
                                      [memory, mapped](std::byte*) { ::munmap(memory, mapped); });
}

} // namespace safering::io
