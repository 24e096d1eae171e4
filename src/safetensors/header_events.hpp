// What a JSON text means as a safetensors header: SAX events in, table of tensors
// or the first error out.
//
// Holds one tensor at a time, so memory follows the table and not the text. Refuses at the first
// event that breaks a rule; only a key that stands twice is found later, where its object ends.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "safetensors/header.hpp"
#include "safetensors/key_scopes.hpp"

namespace safering::safetensors {

class HeaderEvents {
  public:
    /// `file` and `limits` are borrowed. `data_bytes` is what the file holds behind its header.
    HeaderEvents(const std::string& file, const HeaderLimits& limits, std::uint64_t data_bytes)
        : file_(file), limits_(limits), data_bytes_(data_bytes) {}

    // The SAX interface of nlohmann::json; false ends the parse, and error() says why.
    bool null();
    bool boolean(bool value);
    bool number_integer(std::int64_t value);
    bool number_unsigned(std::uint64_t value);
    bool number_float(double value, const std::string& text);
    bool string(std::string& value);
    bool binary(nlohmann::json::binary_t& value);
    bool start_object(std::size_t size);
    bool key(std::string& key);
    bool end_object();
    bool start_array(std::size_t size);
    bool end_array();
    bool parse_error(std::size_t position, const std::string& token,
                     const nlohmann::json::exception& exception);

    std::optional<Error>& error() { return error_; }
    /// The table in the order of the text; meaningful after a parse without an error.
    Header& header() { return header_; }

  private:
    /// The innermost open container that has a meaning of its own.
    enum class Place { outside, table, metadata, tensor, shape, data_offsets, skipped, done };
    /// The member of the table that was begun last, none between members.
    enum class Member { none, metadata, tensor };
    enum class Field : unsigned { dtype = 1, shape = 2, data_offsets = 4, unknown = 8 };

    bool skips() const {
        return place_ == Place::skipped || (place_ == Place::tensor && field_ == Field::unknown);
    }
    bool table_key(const std::string& key);
    bool metadata_key(std::string& key);
    bool tensor_key(const std::string& key);
    bool unexpected_value(std::string_view found);
    bool enter(Place place);
    bool close_scope();
    bool end_tensor();
    bool check_size();
    bool reject(Errc code, std::string detail);

    const std::string& file_;
    const HeaderLimits& limits_;
    std::uint64_t data_bytes_;

    Place place_ = Place::outside;
    std::uint64_t depth_ = 0;
    /// Open containers of the unknown field that is being skipped.
    std::uint64_t skipped_depth_ = 0;
    KeyScopes scopes_;

    Member member_ = Member::none;
    std::string metadata_key_;
    TensorEntry tensor_;
    TensorNames names_;
    Field field_ = Field::unknown;
    unsigned seen_fields_ = 0;
    unsigned offsets_seen_ = 0;

    Header header_;
    std::optional<Error> error_;
};

} // namespace safering::safetensors
