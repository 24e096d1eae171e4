// A short list of numbers, one a dimension: the shape, offsets or strides of a tensor.
#pragma once

#include <algorithm>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <type_traits>
#include <utility>

#include <safering/error.hpp>

namespace safering {

/// A vector of up to 2^32 - 1 numbers, in place up to three of them and on the heap beyond. 32 bytes: a plan of a
/// million items has several million of these, and half of a cache line each is what most of them cost. Has what
/// std::vector has of the same names, with the same meaning; iterators become invalid with a move too.
template <typename T>
class Dimensions {
    static_assert(std::is_integral_v<T> && sizeof(T) == 8);

  public:
    using value_type = T;
    using size_type = std::size_t;
    using difference_type = std::ptrdiff_t;
    using reference = T&;
    using const_reference = const T&;
    using iterator = T*;
    using const_iterator = const T*;

    Dimensions() noexcept = default;
    explicit Dimensions(std::size_t count, T value = 0) { assign(count, value); }
    Dimensions(std::initializer_list<T> values) : Dimensions(values.begin(), values.end()) {}
    template <std::forward_iterator Iterator>
    Dimensions(Iterator first, Iterator last) {
        assign(first, last);
    }
    Dimensions(const Dimensions& other) : Dimensions(other.begin(), other.end()) {}
    Dimensions(Dimensions&& other) noexcept { take(other); }
    Dimensions& operator=(const Dimensions& other) {
        if (this != &other)
            assign(other.begin(), other.end());
        return *this;
    }
    Dimensions& operator=(Dimensions&& other) noexcept {
        if (this != &other) {
            release();
            take(other);
        }
        return *this;
    }
    Dimensions& operator=(std::initializer_list<T> values) {
        assign(values.begin(), values.end());
        return *this;
    }
    ~Dimensions() { release(); }

    std::size_t size() const noexcept { return size_; }
    bool empty() const noexcept { return size_ == 0; }
    std::size_t capacity() const noexcept { return capacity_; }
    T* data() noexcept { return is_on_heap() ? heap_ : in_place_; }
    const T* data() const noexcept { return is_on_heap() ? heap_ : in_place_; }
    T* begin() noexcept { return data(); }
    T* end() noexcept { return data() + size_; }
    const T* begin() const noexcept { return data(); }
    const T* end() const noexcept { return data() + size_; }
    auto rbegin() noexcept { return std::reverse_iterator(end()); }
    auto rend() noexcept { return std::reverse_iterator(begin()); }
    auto rbegin() const noexcept { return std::reverse_iterator(end()); }
    auto rend() const noexcept { return std::reverse_iterator(begin()); }
    T& operator[](std::size_t i) noexcept { return data()[i]; }
    const T& operator[](std::size_t i) const noexcept { return data()[i]; }
    T& front() noexcept { return *data(); }
    const T& front() const noexcept { return *data(); }
    T& back() noexcept { return data()[size_ - 1]; }
    const T& back() const noexcept { return data()[size_ - 1]; }

    void clear() noexcept { size_ = 0; }
    void reserve(std::size_t capacity) {
        if (capacity > capacity_)
            grow(capacity);
    }
    void push_back(T value) {
        if (size_ == capacity_)
            grow(std::size_t{2} * capacity_);
        data()[size_++] = value;
    }
    void pop_back() noexcept { --size_; }
    void resize(std::size_t count, T value = 0) {
        reserve(count);
        if (count > size_)
            std::fill(end(), data() + count, value);
        size_ = static_cast<std::uint32_t>(count);
    }
    void assign(std::size_t count, T value) {
        clear();
        resize(count, value);
    }
    template <std::forward_iterator Iterator>
    void assign(Iterator first, Iterator last) {
        const auto count = static_cast<std::size_t>(std::distance(first, last));
        clear();
        reserve(count);
        std::copy(first, last, data());
        size_ = static_cast<std::uint32_t>(count);
    }
    void swap(Dimensions& other) noexcept { std::swap(*this, other); }

    friend bool operator==(const Dimensions& a, const Dimensions& b) noexcept {
        return std::equal(a.begin(), a.end(), b.begin(), b.end());
    }
    friend std::strong_ordering operator<=>(const Dimensions& a, const Dimensions& b) noexcept {
        return std::lexicographical_compare_three_way(a.begin(), a.end(), b.begin(), b.end());
    }

  private:
    static constexpr std::uint32_t most_in_place = 3;

    bool is_on_heap() const noexcept { return capacity_ > most_in_place; }
    void release() noexcept {
        if (is_on_heap())
            delete[] heap_;
    }
    // `other` is empty afterwards.
    void take(Dimensions& other) noexcept {
        if (other.is_on_heap())
            heap_ = other.heap_;
        else
            std::copy_n(other.in_place_, most_in_place, in_place_);
        size_ = std::exchange(other.size_, 0);
        capacity_ = std::exchange(other.capacity_, most_in_place);
    }
    void grow(std::size_t capacity) {
        SAFERING_ASSERT(capacity <= UINT32_MAX);
        T* larger = new T[capacity];
        std::copy_n(data(), size_, larger);
        release();
        heap_ = larger;
        capacity_ = static_cast<std::uint32_t>(capacity);
    }

    union {
        T in_place_[most_in_place] = {};
        T* heap_;
    };
    std::uint32_t size_ = 0;
    std::uint32_t capacity_ = most_in_place;
};

/// Extents or offsets, outermost dimension first; empty for a scalar.
using Shape = Dimensions<std::uint64_t>;
/// In elements (not bytes), may be negative or zero, one a dimension.
using Strides = Dimensions<std::int64_t>;

} // namespace safering
