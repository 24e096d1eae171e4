// A fuzzer's bytes, taken one decision after the other; zeros once they are spent.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include <safering/tensor.hpp>

namespace safering::test {

class Input {
  public:
    Input(const std::uint8_t* data, std::size_t size) : left_(data, size) {}

    bool spent() const { return left_.empty(); }
    std::uint8_t byte() {
        if (left_.empty())
            return 0;
        const std::uint8_t value = left_.front();
        left_ = left_.subspan(1);
        return value;
    }
    /// In [0, n).
    std::uint64_t below(std::uint64_t n) {
        std::uint64_t value = byte();
        for (std::uint64_t reach = 256; reach < n && reach != 0; reach <<= 8)
            value = value << 8 | byte();
        return value % n;
    }
    Shape shape(std::size_t rank, std::uint64_t extents) {
        Shape out;
        for (; rank > 0; --rank)
            out.push_back(below(extents));
        return out;
    }
    std::string_view rest() const {
        return {reinterpret_cast<const char*>(left_.data()), left_.size()};
    }

  private:
    std::span<const std::uint8_t> left_;
};

} // namespace safering::test
