// Boxes of row-major tensors as bytes: where a box's runs lie in its file, and copies between a
// file image and strided memory. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include <safering/byte_range.hpp>
#include <safering/tensor.hpp>

#include "plan/walk.hpp"

namespace safering::plan {

/// A box of a stored tensor, as runs of bytes of the tensor's data. Offsets are relative to the
/// tensor's first byte. Dimensions are collapsed: a run is as long as it can be.
class FileBox {
  public:
    /// Errors: plan_out_of_bounds, plan_partial_byte (a 4- or 6-bit box that does not start and end
    /// on whole bytes in every run), plan_shape_mismatch (ranks differ), plan_overflow.
    static Result<FileBox> make(Dtype dtype, const Shape& stored, const Shape& offsets,
                                const Shape& sizes);

    /// From the first byte of the first run to the last byte of the last; empty for an empty box.
    ByteRange hull() const { return {begin_, begin_ + span_bytes_}; }
    /// Bytes of the box.
    std::uint64_t bytes() const { return bytes_; }
    std::uint64_t run_bytes() const { return run_bytes_; }
    /// The box is its hull.
    bool contiguous() const { return loops_.empty(); }

    /// Between two of its runs; 0 where it is its hull.
    std::uint64_t longest_gap() const;
    /// Calls f(ByteRange) for the part of each run that lies in `window`, in rising order;
    /// starts at the window, in time proportional to the rank and the runs inside it. Adjacent
    /// runs may be reported apart.
    template <typename F>
    void for_each_run(ByteRange window, F&& f) const;
    /// How many of the box's bytes lie before `offset`; in time proportional to the rank.
    std::uint64_t bytes_before(std::uint64_t offset) const;

    // One nested loop of the walk, outermost first: `count` steps of `file_stride` bytes.
    using Loop = plan::Loop;

  private:
    std::uint64_t begin_ = 0;
    std::uint64_t run_bytes_ = 0;
    std::uint64_t span_bytes_ = 0;
    std::uint64_t bytes_ = 0;
    Loops loops_; // every count >= 2, every stride > the bytes inside it
};

/// Takes XXH3-64 over bytes in file order. One allocation for its life; reset() starts anew. One
/// that was moved from may only be assigned to or destroyed.
class Digest {
  public:
    Digest();
    ~Digest();
    Digest(Digest&&) noexcept;
    Digest& operator=(Digest&&) noexcept;
    void reset();
    void update(const std::byte* data, std::size_t bytes);
    /// The box's bytes inside `window`, from an image of that window.
    void update(const FileBox& box, const std::byte* image, ByteRange window);
    std::uint64_t value() const;

  private:
    struct State;
    std::unique_ptr<State> state_;
};

/// A box of a stored tensor paired with memory. `image` below is the file's bytes from
/// `window.begin` on: image[i] is byte window.begin + i of the stored tensor; bytes of the window
/// outside the box are neither read nor written. Copies of long runs do not pass through the caches
/// (non-temporal stores), and the digest is taken while the bytes are hot.
class BoxCopy {
  public:
    /// `memory_strides` as in TensorView, of the box in memory (its shape is `sizes`);
    /// empty = contiguous. Errors as FileBox::make; sub-byte dtypes with non-contiguous
    /// memory are plan_partial_byte.
    static Result<BoxCopy> make(Dtype dtype, const Shape& stored, const Shape& offsets,
                                const Shape& sizes, const Strides& memory_strides);

    /// memory -> image. `memory` is the box's element (0, 0, ...). The digest, where given, is
    /// updated with the box's bytes inside the window in file order; it may read them from `memory`,
    /// a second time, so memory that changes meanwhile shows as a digest that does not match.
    void gather(const std::byte* memory, std::byte* image, ByteRange window,
                Digest* digest = nullptr) const;
    /// The same, and the digest of the box's bytes inside the window; `scratch` is for taking it.
    std::uint64_t gather_digested(const std::byte* memory, std::byte* image, ByteRange window,
                                  Digest& scratch) const;
    /// image -> memory.
    void scatter(const std::byte* image, std::byte* memory, ByteRange window) const;

    /// Where the whole box lies in memory as one run in file order: then byte hull().begin + i of
    /// the tensor is memory[i].
    bool memory_contiguous() const { return loops_.empty(); }
    /// Whether memory holds the box's bytes one after the other in file order: the byte at offset o of the
    /// tensor, one of the box's, is then memory[file_box().bytes_before(o)].
    bool memory_dense() const;
    const FileBox& file_box() const { return file_box_; }

  private:
    // `Way` says which of the two is written; see box_copy.cpp.
    template <typename Way>
    void move(Way way, ByteRange window) const;
    template <typename Way>
    void move_row(const Way& way, std::uint64_t file, std::int64_t memory, ByteRange window) const;
    template <typename Way>
    void move_plane(const Way& way, std::uint64_t file, std::int64_t memory,
                    ByteRange window) const;
    bool transposed() const;
    std::uint64_t digest_block() const;

    FileBox file_box_;
    // Loops over runs that are contiguous in the file and in memory, outermost first.
    Loops loops_;
    std::uint64_t run_bytes_ = 0;
};

/// Digest of bytes that lie together.
std::uint64_t digest_of(std::span<const std::byte> bytes);
/// Digest of the box's bytes inside `window`, from an image of that window.
std::uint64_t digest_of_image(const FileBox& box, const std::byte* image, ByteRange window);

template <typename F>
void FileBox::for_each_run(ByteRange window, F&& f) const {
    window = window.clip(hull());
    if (window.empty())
        return;
    if (loops_.empty()) {
        f(window);
        return;
    }
    const Loop row = loops_.back();
    const std::span<const Loop> outer(loops_.data(), loops_.size() - 1);
    walk(outer, begin_, window, [&](std::uint64_t file, std::int64_t) {
        const Cut cut = cut_loop(row, run_bytes_, file, window);
        if (cut.head)
            f(run_at(row, run_bytes_, file, cut.first - 1).clip(window));
        for (std::uint64_t i = cut.first; i < cut.last; ++i)
            f(run_at(row, run_bytes_, file, i));
        if (cut.tail)
            f(run_at(row, run_bytes_, file, cut.last).clip(window));
    });
}

} // namespace safering::plan
