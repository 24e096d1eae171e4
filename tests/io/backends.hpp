// What the tests over every backend share: a reactor of each kind and a directory of one's own.
#pragma once

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <safering/reactor.hpp>

namespace safering::test {

/// A directory that goes away with its contents.
class TemporaryDirectory {
  public:
    TemporaryDirectory() {
        std::string pattern = (std::filesystem::temp_directory_path() / "safering.XXXXXX").string();
        path_ = ::mkdtemp(pattern.data());
    }
    TemporaryDirectory(const TemporaryDirectory&) = delete;
    TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
    ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
    const std::string& path() const { return path_; }
    std::string operator/(const std::string& name) const { return path_ + "/" + name; }

  private:
    std::string path_;
};

/// Memory aligned for direct I/O.
class Block {
  public:
    explicit Block(std::size_t bytes)
        : bytes_(bytes),
          data_(static_cast<std::byte*>(std::aligned_alloc(4096, bytes)), &std::free) {
        std::memset(data_.get(), 0, bytes);
    }
    std::byte* data() const { return data_.get(); }
    std::size_t size() const { return bytes_; }
    std::span<std::byte> span() const { return {data(), size()}; }
    void fill(unsigned seed) {
        std::mt19937 random(seed);
        for (std::byte& byte : span())
            byte = static_cast<std::byte>(random());
    }
    bool equals(const Block& other, std::size_t bytes) const {
        return std::memcmp(data(), other.data(), bytes) == 0;
    }

  private:
    std::size_t bytes_;
    std::unique_ptr<std::byte, decltype(&std::free)> data_;
};

/// With few small buffers, so that a small model goes through them several times.
inline std::shared_ptr<Reactor> small_reactor() {
    return value_or_throw(Reactor::create({.buffer_bytes = 16 << 10, .buffer_count = 4}));
}

inline std::error_code errno_code(int value) {
    return {value, std::system_category()};
}

} // namespace safering::test
