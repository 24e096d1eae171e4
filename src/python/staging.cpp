// Memory for staged state dicts, kept from one asynchronous save to the next: the first touch of fresh pages costs
// more than the copy (measured: 1.5 to 7 us a page of 4 KiB on virtual machines).
#include "python/bindings.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>

#include "io/huge_memory.hpp"
#include "plan/copy_kernels.hpp"

namespace safering::python {

namespace {

struct Block {
    std::shared_ptr<std::byte> memory;
    std::size_t bytes = 0;
};

// One block waits for its next user; the larger one where two come back.
class BlockPool {
  public:
    Block take(std::size_t bytes) {
        {
            const std::lock_guard lock(mutex_);
            // A block of much more than is wanted stays for whoever wants it.
            if (spare_.bytes >= bytes && spare_.bytes / 2 <= bytes)
                return std::exchange(spare_, {});
        }
        return {value_or_throw(io::allocate_huge(bytes)), bytes};
    }
    void give(Block block) {
        const std::lock_guard lock(mutex_);
        if (block.bytes > spare_.bytes)
            std::swap(block, spare_);
    }
    void clear() {
        const std::lock_guard lock(mutex_);
        spare_ = {};
    }

  private:
    std::mutex mutex_;
    Block spare_;
};

// Never destroyed: buffers may outlive the module.
BlockPool& pool() {
    static auto* const blocks = new BlockPool;
    return *blocks;
}

class StagingBuffer {
  public:
    explicit StagingBuffer(std::size_t bytes) : block_(pool().take(bytes)), bytes_(bytes) {}
    ~StagingBuffer() { pool().give(std::move(block_)); }
    StagingBuffer(const StagingBuffer&) = delete;
    StagingBuffer& operator=(const StagingBuffer&) = delete;

    std::byte* data() const { return block_.memory.get(); }
    std::size_t bytes() const { return bytes_; }

  private:
    Block block_;
    std::size_t bytes_;
};

struct Piece {
    std::byte* to;
    const std::byte* from;
    std::size_t bytes;
};

// Contiguous pieces, by as many threads as there are processors, up to the four that fill a memory controller.
void copy(const std::vector<Piece>& pieces) {
    std::atomic<std::size_t> next = 0;
    const auto work = [&] {
        for (std::size_t i = next++; i < pieces.size(); i = next++)
            plan::copy_streaming(pieces[i].to, pieces[i].from, pieces[i].bytes);
        plan::streaming_fence();
    };
    std::vector<std::jthread> helpers;
    const std::size_t threads = std::min<std::size_t>(
        {std::max(1u, std::thread::hardware_concurrency()), 4, pieces.size()});
    for (std::size_t t = 1; t < threads; ++t)
        helpers.emplace_back(work);
    work();
}

void copy_into(const StagingBuffer& buffer, const py::list& offsets, const py::list& addresses,
               const py::list& sizes) {
    check_columns(py::len(offsets), {addresses, sizes});
    constexpr std::size_t piece_bytes = std::size_t{4} << 20;
    std::vector<Piece> pieces;
    for (std::size_t i = 0; i < py::len(offsets); ++i) {
        const auto offset = py::cast<std::size_t>(offsets[i]);
        const auto size = py::cast<std::size_t>(sizes[i]);
        const auto* from =
            reinterpret_cast<const std::byte*>(py::cast<std::uintptr_t>(addresses[i]));
        if (offset > buffer.bytes() || size > buffer.bytes() - offset)
            throw py::value_error("a copy reaches past the end of the buffer");
        for (std::size_t done = 0; done < size; done += piece_bytes)
            pieces.push_back(
                {buffer.data() + offset + done, from + done, std::min(piece_bytes, size - done)});
    }
    const py::gil_scoped_release release;
    copy(pieces);
}

} // namespace

void bind_staging(py::module_& module) {
    py::class_<StagingBuffer>(module, "StagingBuffer", py::buffer_protocol())
        .def(py::init<std::size_t>(), py::arg("size"))
        .def_buffer([](StagingBuffer& buffer) {
            return py::buffer_info(reinterpret_cast<std::uint8_t*>(buffer.data()),
                                   static_cast<py::ssize_t>(buffer.bytes()));
        })
        .def("copy", &copy_into, py::arg("offsets"), py::arg("addresses"), py::arg("sizes"));
    module.def("release_staging_memory", [] { pool().clear(); });
}

} // namespace safering::python
