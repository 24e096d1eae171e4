// model.safetensors.index.json: which file holds which tensor. The Hugging Face Hub's format. Pure.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include <boost/container/flat_map.hpp>

#include <safering/error.hpp>

namespace safering::checkpoint {

/// fqn -> file name.
using WeightMap = boost::container::flat_map<std::string, std::string, std::less<>>;

/// {"metadata":{"total_size":N},"weight_map":{...}}. `entries` calls what it is given with each fqn and its
/// file's name, sorted by fqn.
using AddWeight = std::function<void(std::string_view, std::string_view)>;
std::string index_text(std::uint64_t total_size,
                       const std::function<void(const AddWeight&)>& entries);
std::string index_text(const WeightMap& weight_map, std::uint64_t total_size);

/// Only weight_map is needed; other keys are skipped. Errors: checkpoint_bad_index, checkpoint_unsafe_name.
Result<WeightMap> parse_index(std::string_view text, const std::string& file);

} // namespace safering::checkpoint
