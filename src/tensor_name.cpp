#include <safering/tensor_name.hpp>

#include <algorithm>
#include <cstring>
#include <new>

namespace safering {

namespace {

// And the null behind it.
const char* copy_to(char* at, std::string_view text) {
    std::memcpy(at, text.data(), text.size());
    at[text.size()] = 0;
    return at;
}

} // namespace

TensorName::Text* TensorName::Text::make(std::size_t room) {
    return new (::operator new(sizeof(Text) + room)) Text;
}

void TensorName::Text::destroy(Text* text) noexcept {
    text->~Text();
    ::operator delete(text);
}

TensorName::TensorName(std::string_view text) {
    if (text.empty())
        return;
    text_ = Text::make(text.size() + 1);
    data_ = copy_to(text_->begin(), text);
    size_ = text.size();
}

TensorName TensorNames::add(std::string_view name) {
    constexpr std::size_t least_room = std::size_t{4} << 10, most_room = std::size_t{256} << 10;
    if (name.empty())
        return {};
    const std::size_t bytes = name.size() + 1;
    if (bytes > least_room)
        return name; // does not end what is half full
    if (room_ - used_ < bytes) {
        const std::size_t room = std::clamp(2 * room_, least_room, most_room);
        TensorName::Text* text = TensorName::Text::make(room);
        TensorName::Text::drop(std::exchange(text_, text));
        room_ = room;
        used_ = 0;
    }
    const char* at = copy_to(text_->begin() + used_, name);
    used_ += bytes;
    return {text_, {at, name.size()}};
}

} // namespace safering
