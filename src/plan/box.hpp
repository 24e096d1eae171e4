// Boxes of row-major tensors as bytes: where a box's runs lie in its file, and copies between a file image
// and strided memory. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include <boost/container/small_vector.hpp>

#include <safering/byte_range.hpp>
#include <safering/tensor.hpp>

namespace safering::plan {

/// A box of a stored tensor, as runs of bytes of the tensor's data. Offsets are relative to the tensor's
/// first byte. Dimensions are collapsed: a run is as long as it can be.
class FileBox {
  public:
    /// Errors: plan_out_of_bounds, plan_partial_byte (a 4- or 6-bit box that does not start and end on
    /// whole bytes in every run), plan_shape_mismatch (ranks differ), plan_overflow.
    static Result<FileBox> make(Dtype dtype, const Shape& stored, const Shape& offsets,
                                const Shape& sizes);

    /// From the first byte of the first run to the last byte of the last; empty for an empty box.
    ByteRange hull() const;
    /// Bytes of the box.
    std::uint64_t bytes() const;
    std::uint64_t run_bytes() const;
    /// The box is its hull.
    bool contiguous() const;

    /// Calls f(ByteRange) for the part of each run that lies in `window`, in rising order; starts at the
    /// window, in time proportional to the rank and the runs inside it. Adjacent runs may be reported apart.
    template <typename F>
    void for_each_run(ByteRange window, F&& f) const;

    // One nested loop of the walk, outermost first: `count` steps of `file_stride` bytes.
    struct Loop {
        std::uint64_t count;
        std::uint64_t file_stride;
    };

  private:
    std::uint64_t begin_ = 0;
    std::uint64_t run_bytes_ = 0;
    boost::container::small_vector<Loop, 4> loops_;
};

/// Takes XXH3-64 over bytes in file order.
class Digest {
  public:
    Digest();
    ~Digest();
    Digest(Digest&&) noexcept;
    Digest& operator=(Digest&&) noexcept;
    void reset();
    void update(const std::byte* data, std::size_t bytes);
    std::uint64_t value() const;

  private:
    struct State;
    std::unique_ptr<State> state_;
};

/// A box of a stored tensor paired with memory. `image` below is the file's bytes from `window.begin` on:
/// image[i] is byte window.begin + i of the stored tensor; bytes of the window outside the box are neither
/// read nor written. Copies of long runs do not pass through the caches (non-temporal stores), and the
/// digest is taken while the bytes are hot.
class BoxCopy {
  public:
    /// `memory_strides` as in TensorView, of the box in memory (its shape is `sizes`); empty = contiguous.
    /// Errors as FileBox::make; sub-byte dtypes with non-contiguous memory are plan_partial_byte.
    static Result<BoxCopy> make(Dtype dtype, const Shape& stored, const Shape& offsets,
                                const Shape& sizes, const Strides& memory_strides);

    /// memory -> image. `memory` is the box's element (0, 0, ...).
    void gather(const std::byte* memory, std::byte* image, ByteRange window,
                Digest* digest = nullptr) const;
    /// image -> memory.
    void scatter(const std::byte* image, std::byte* memory, ByteRange window) const;

    /// Where the whole box lies in memory as one run in file order: then byte hull().begin + i of the
    /// tensor is memory[i].
    bool memory_contiguous() const;
    const FileBox& file_box() const { return file_box_; }

  private:
    struct Loop {
        std::uint64_t count;
        std::uint64_t file_stride;
        std::int64_t memory_stride;
    };
    FileBox file_box_;
    // Loops over runs that are contiguous in the file and in memory, outermost first.
    boost::container::small_vector<Loop, 4> loops_;
    std::uint64_t run_bytes_ = 0;
};

/// Digest of the box's bytes inside `window`, from an image of that window.
std::uint64_t digest_of_image(const FileBox& box, const std::byte* image, ByteRange window);

} // namespace safering::plan
