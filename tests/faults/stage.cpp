#include "stage.hpp"

#include <vector>

#include <fmt/format.h>

#include "../crash/recovery.hpp"
#include "../descriptors.hpp"
#include "io/buffer_pool.hpp"

namespace safering::test {

Stage::Stage() : reactor(crash_reactor(disk)) {
    // What is made at first use is no leak.
    (void)reactor->buffers();
    (void)reactor->endpoint();
}

void Stage::set(const SimulatedTree& tree) {
    (void)reactor->wait({.op = Opcode::stat, .path = "/"});
    disk->restart(tree);
}

std::string Stage::leaks() {
    // Behind what nobody waits for: closes.
    (void)reactor->wait({.op = Opcode::stat, .path = "/"});
    if (const std::size_t open = disk->open_files(); open != 0)
        return fmt::format("a descriptor: {} files are open", open);
    std::vector<BufferPool::Buffer> buffers;
    while (BufferPool::Buffer buffer = reactor->buffers().try_acquire())
        buffers.push_back(std::move(buffer));
    if (buffers.size() != reactor->buffers().count())
        return fmt::format("a buffer: {} of {} are free", buffers.size(),
                           reactor->buffers().count());
    const std::int64_t now = open_descriptors();
    if (descriptors_ == 0)
        descriptors_ = now;
    if (now > descriptors_)
        return fmt::format("a descriptor: the process has {} of them, it had {}", now,
                           descriptors_);
    return {};
}

std::vector<std::string> Stage::names(const std::string& directory) const {
    return disk->list(directory);
}

} // namespace safering::test
