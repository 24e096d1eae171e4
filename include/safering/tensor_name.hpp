// Names of tensors. A checkpoint of 100,000 small tensors is mostly names, and each goes from the trainer through
// plans, results and metadata: copies share the text. As std::string, allocated between a trainer's tensors, each
// copy lay on a page of its own: measured, twice the time of a whole save.
#pragma once

#include <atomic>
#include <compare>
#include <concepts>
#include <cstddef>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>

#include <safering/export.hpp>

namespace safering {

/// A tensor's fully qualified name (fqn): any bytes, followed by a null. Immutable; a copy costs a count. Copies may be
/// used on several threads, as those of a std::shared_ptr.
class SAFERING_API TensorName {
  public:
    TensorName() = default;
    TensorName(std::string_view text);
    TensorName(const std::string& text) : TensorName(std::string_view(text)) {}
    TensorName(const char* text) : TensorName(std::string_view(text)) {}

    TensorName(const TensorName& other) noexcept
        : data_(other.data_), size_(other.size_), text_(other.text_) {
        hold();
    }
    TensorName(TensorName&& other) noexcept { swap(other); }
    TensorName& operator=(TensorName other) noexcept {
        swap(other);
        return *this;
    }
    ~TensorName() { Text::drop(text_); }

    operator std::string_view() const noexcept { return {data_, size_}; }
    std::string_view view() const noexcept { return *this; }
    std::string str() const { return std::string(view()); }
    const char* c_str() const noexcept { return data_; }
    const char* data() const noexcept { return data_; }
    std::size_t size() const noexcept { return size_; }
    bool empty() const noexcept { return size_ == 0; }

    template <std::convertible_to<std::string_view> T>
    friend bool operator==(const TensorName& a, const T& b) noexcept {
        const std::string_view text = b;
        return a.size_ == text.size() && (a.data_ == text.data() || a.view() == text);
    }
    /// By bytes.
    template <std::convertible_to<std::string_view> T>
    friend std::strong_ordering operator<=>(const TensorName& a, const T& b) noexcept {
        return a.view() <=> std::string_view(b);
    }
    friend std::ostream& operator<<(std::ostream& out, const TensorName& name) {
        return out << name.view();
    }

  private:
    friend class TensorNames;
    // Characters follow, of one name or of several.
    struct Text {
        std::atomic<std::size_t> uses{1};

        char* begin() noexcept { return reinterpret_cast<char*>(this + 1); }
        static Text* make(std::size_t room);
        static void drop(Text* text) noexcept {
            if (text != nullptr && text->uses.fetch_sub(1, std::memory_order_acq_rel) == 1)
                destroy(text);
        }
        static void destroy(Text* text) noexcept;
    };

    TensorName(Text* text, std::string_view part) noexcept
        : data_(part.data()), size_(part.size()), text_(text) {
        hold();
    }
    void swap(TensorName& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        std::swap(text_, other.text_);
    }
    void hold() const noexcept {
        if (text_ != nullptr)
            text_->uses.fetch_add(1, std::memory_order_relaxed);
    }

    const char* data_ = "";
    std::size_t size_ = 0;
    Text* text_ = nullptr; // what data_ lies in; null for the name without text
};

/// Makes names that lie beside each other in memory: for whoever has many. One name keeps the text of up to 256 KiB of
/// others. One thread.
class SAFERING_API TensorNames {
  public:
    TensorNames() = default;
    TensorNames(TensorNames&& other) noexcept
        : text_(std::exchange(other.text_, nullptr)), used_(std::exchange(other.used_, 0)),
          room_(std::exchange(other.room_, 0)) {}
    TensorNames& operator=(TensorNames&&) = delete;
    ~TensorNames() { TensorName::Text::drop(text_); }

    TensorName add(std::string_view name);

  private:
    TensorName::Text* text_ = nullptr;
    std::size_t used_ = 0;
    std::size_t room_ = 0;
};

} // namespace safering
