// File names of a checkpoint: those of PyTorch's HuggingFaceStorageWriter and
// of the Hugging Face Hub.
#include "plan/layout.hpp"

#include <fmt/format.h>

namespace safering::plan {

namespace {

// Takes `prefix` off the front of `text`.
bool take(std::string_view& text, std::string_view prefix) {
    if (!text.starts_with(prefix))
        return false;
    text.remove_prefix(prefix.size());
    return true;
}

// Five digits or more; no leading zero where there are more.
bool take_number(std::string_view& text) {
    std::size_t digits = 0;
    while (digits < text.size() && text[digits] >= '0' && text[digits] <= '9')
        ++digits;
    if (digits < 5 || digits > 10 || (digits > 5 && text[0] == '0'))
        return false;
    text.remove_prefix(digits);
    return true;
}

} // namespace

std::string full_file_name(std::uint32_t index, std::uint32_t largest) {
    return fmt::format("model-{:05}-of-{:05}.safetensors", index, largest);
}

std::string shard_file_name(std::uint32_t shard, std::uint32_t index, std::uint32_t largest) {
    return fmt::format("shard-{:05}-model-{:05}-of-{:05}.safetensors", shard, index, largest);
}

bool is_checkpoint_file_name(std::string_view name) {
    if (name == "model.safetensors")
        return true;
    if (take(name, "shard-") && !(take_number(name) && take(name, "-")))
        return false;
    return take(name, "model-") && take_number(name) && take(name, "-of-") && take_number(name) &&
           name == ".safetensors";
}

} // namespace safering::plan
