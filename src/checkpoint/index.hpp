// model.safetensors.index.json: which file holds which tensor. The Hugging Face Hub's format. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include <safering/error.hpp>

namespace safering::checkpoint {

/// fqn -> file name.
using WeightMap = std::map<std::string, std::string, std::less<>>;

/// {"metadata":{"total_size":N},"weight_map":{...}}, names sorted.
std::string index_text(const WeightMap& weight_map, std::uint64_t total_size);

/// Only weight_map is needed; other keys are skipped. Errors: checkpoint_bad_index, checkpoint_unsafe_name.
Result<WeightMap> parse_index(std::string_view text, const std::string& file);

} // namespace safering::checkpoint
