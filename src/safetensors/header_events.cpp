#include "safetensors/header_events.hpp"

#include <array>

#include <fmt/format.h>

namespace safering::safetensors {

namespace {

constexpr std::string_view metadata_name = "__metadata__";
constexpr std::array<std::string_view, 3> field_names{"dtype", "shape", "data_offsets"};
constexpr std::string_view unsigned_integer = "an unsigned 64-bit integer";

// nlohmann's id of a number beyond the range of a double.
constexpr int number_out_of_range = 406;

// The words of nlohmann's message without its prefix and its line and column.
std::string_view reason_of(const nlohmann::json::exception& exception) {
    std::string_view text = exception.what();
    if (const std::size_t id = text.find("] "); id != std::string_view::npos)
        text.remove_prefix(id + 2);
    if (text.starts_with("parse error at"))
        if (const std::size_t colon = text.find(": "); colon != std::string_view::npos)
            text.remove_prefix(colon + 2);
    return text;
}

} // namespace

bool HeaderEvents::null() {
    if (place_ == Place::table && member_ == Member::metadata) {
        member_ = Member::none;
        return true;
    }
    return unexpected_value("null");
}

bool HeaderEvents::boolean(bool value) {
    return unexpected_value(value ? "true" : "false");
}

bool HeaderEvents::number_integer(std::int64_t value) {
    // nlohmann calls this for numbers with a minus sign alone, so a 0 stood there as -0.
    return skips() || unexpected_value(value == 0 ? "-0" : fmt::to_string(value));
}

bool HeaderEvents::number_unsigned(std::uint64_t value) {
    if (place_ == Place::shape) {
        if (tensor_.shape.size() >= limits_.rank)
            return reject(Errc::header_rank_too_high,
                          fmt::format("expected at most {} dimensions, found more", limits_.rank));
        tensor_.shape.push_back(value);
        return true;
    }
    if (place_ == Place::data_offsets) {
        if (offsets_seen_ == 2)
            return reject(
                Errc::header_bad_offsets,
                fmt::format("data_offsets: expected 2 integers, found a third, {}", value));
        (offsets_seen_++ == 0 ? tensor_.data.begin : tensor_.data.end) = value;
        return true;
    }
    return skips() || unexpected_value(fmt::to_string(value));
}

bool HeaderEvents::number_float(double, const std::string& text) {
    return skips() || unexpected_value(escaped(text));
}

bool HeaderEvents::string(std::string& value) {
    if (place_ == Place::metadata) {
        header_.metadata.emplace_back(std::move(metadata_key_), value);
        return true;
    }
    if (place_ == Place::tensor && field_ == Field::dtype) {
        const std::optional<Dtype> dtype = parse_dtype(value);
        if (!dtype)
            return reject(Errc::header_unknown_dtype,
                          fmt::format("dtype: expected the name of a safetensors dtype, such as "
                                      "\"F32\", found \"{}\"",
                                      escaped(value)));
        tensor_.dtype = *dtype;
        return true;
    }
    return skips() || unexpected_value(fmt::format("the string \"{}\"", escaped(value)));
}

bool HeaderEvents::binary(nlohmann::json::binary_t&) {
    return reject(Errc::header_syntax, "expected JSON text, found a binary value");
}

bool HeaderEvents::start_object(std::size_t) {
    Place place = Place::skipped;
    if (place_ == Place::outside)
        place = Place::table;
    else if (place_ == Place::table && member_ == Member::metadata)
        place = Place::metadata;
    else if (place_ == Place::table) {
        place = Place::tensor;
        tensor_.shape.clear();
        seen_fields_ = 0;
        offsets_seen_ = 0;
    } else if (!skips())
        return unexpected_value("an object");
    if (!enter(place))
        return false;
    scopes_.open();
    return true;
}

bool HeaderEvents::key(std::string& key) {
    switch (place_) {
    case Place::table: return table_key(key);
    case Place::metadata: return metadata_key(key);
    case Place::tensor: return tensor_key(key);
    default: scopes_.add(key); return true;
    }
}

bool HeaderEvents::table_key(const std::string& key) {
    scopes_.add(key);
    member_ = key == metadata_name ? Member::metadata : Member::tensor;
    if (member_ == Member::metadata)
        return true;
    tensor_.name = names_.add(key);
    if (key.size() > limits_.name_bytes)
        return reject(Errc::header_name_too_long,
                      fmt::format("expected a name of at most {} bytes, found {} bytes",
                                  limits_.name_bytes, key.size()));
    if (header_.tensors.size() >= limits_.tensors)
        return reject(Errc::header_too_many_tensors,
                      fmt::format("expected at most {} tensors, found more", limits_.tensors));
    return true;
}

bool HeaderEvents::metadata_key(std::string& key) {
    scopes_.add(key);
    if (header_.metadata.size() >= limits_.metadata_entries)
        return reject(Errc::header_bad_metadata,
                      fmt::format("__metadata__: expected at most {} entries, found more",
                                  limits_.metadata_entries));
    metadata_key_ = key;
    return true;
}

bool HeaderEvents::tensor_key(const std::string& key) {
    field_ = key == "dtype"          ? Field::dtype
             : key == "shape"        ? Field::shape
             : key == "data_offsets" ? Field::data_offsets
                                     : Field::unknown;
    if (field_ == Field::unknown) {
        scopes_.add(key);
        return true;
    }
    if ((seen_fields_ & static_cast<unsigned>(field_)) != 0)
        return reject(Errc::header_duplicate_key,
                      fmt::format("expected each field once, found \"{}\" twice", key));
    seen_fields_ |= static_cast<unsigned>(field_);
    return true;
}

bool HeaderEvents::end_object() {
    if (!close_scope())
        return false;
    --depth_;
    switch (place_) {
    case Place::table: place_ = Place::done; return true;
    case Place::metadata:
        place_ = Place::table;
        member_ = Member::none;
        return true;
    case Place::tensor: return end_tensor();
    default:
        if (--skipped_depth_ == 0)
            place_ = Place::tensor;
        return true;
    }
}

bool HeaderEvents::close_scope() {
    const std::optional<std::string> twice = scopes_.close();
    if (!twice)
        return true;
    const std::string found =
        fmt::format("expected each key once, found \"{}\" twice", escaped(*twice));
    if (place_ == Place::metadata)
        return reject(Errc::header_duplicate_key, "__metadata__: " + found);
    if (place_ == Place::table) {
        member_ = *twice == metadata_name ? Member::metadata : Member::tensor;
        tensor_.name = names_.add(*twice);
    }
    return reject(Errc::header_duplicate_key, found);
}

bool HeaderEvents::start_array(std::size_t) {
    if (place_ == Place::tensor && field_ == Field::shape)
        return enter(Place::shape);
    if (place_ == Place::tensor && field_ == Field::data_offsets)
        return enter(Place::data_offsets);
    return skips() ? enter(Place::skipped) : unexpected_value("an array");
}

bool HeaderEvents::end_array() {
    if (place_ == Place::data_offsets && offsets_seen_ != 2)
        return reject(Errc::header_bad_offsets,
                      fmt::format("data_offsets: expected 2 integers, found {}", offsets_seen_));
    --depth_;
    if (place_ != Place::skipped || --skipped_depth_ == 0)
        place_ = Place::tensor;
    return true;
}

bool HeaderEvents::parse_error(std::size_t position, const std::string& token,
                               const nlohmann::json::exception& exception) {
    // The text is a number, only not one of a field: the field's rule says more than the syntax.
    if (exception.id == number_out_of_range && !skips())
        return unexpected_value(escaped(token));
    const Errc code = place_ == Place::done ? Errc::header_trailing_text : Errc::header_syntax;
    reject(code, escaped(reason_of(exception)));
    error_->offset = sizeof(std::uint64_t) + position - 1; // nlohmann counts what it has read
    error_->length = 1;
    return false;
}

bool HeaderEvents::enter(Place place) {
    if (depth_ >= limits_.depth)
        return reject(Errc::header_too_deep,
                      fmt::format("expected at most {} levels, found more", limits_.depth));
    ++depth_;
    skipped_depth_ += place == Place::skipped ? 1 : 0;
    place_ = place;
    return true;
}

bool HeaderEvents::unexpected_value(std::string_view found) {
    if (skips())
        return true;
    const auto refuse = [&](Errc code, std::string_view where, std::string_view expected) {
        return reject(code, fmt::format("{}: expected {}, found {}", where, expected, found));
    };
    switch (place_) {
    case Place::outside: return refuse(Errc::header_not_object, "top level", "an object");
    case Place::table:
        if (member_ == Member::metadata)
            return refuse(Errc::header_bad_metadata, "__metadata__",
                          "an object of strings, or null");
        return refuse(Errc::header_bad_tensor, "tensor",
                      "an object of dtype, shape and data_offsets");
    case Place::metadata:
        return refuse(Errc::header_bad_metadata,
                      fmt::format("__metadata__ \"{}\"", escaped(metadata_key_)), "a string");
    case Place::shape:
        return refuse(Errc::header_bad_shape, fmt::format("shape[{}]", tensor_.shape.size()),
                      unsigned_integer);
    case Place::data_offsets:
        return refuse(Errc::header_bad_offsets, fmt::format("data_offsets[{}]", offsets_seen_),
                      unsigned_integer);
    default: break;
    }
    switch (field_) {
    case Field::dtype: return refuse(Errc::header_unknown_dtype, "dtype", "a string");
    case Field::shape:
        return refuse(Errc::header_bad_shape, "shape", "an array of unsigned 64-bit integers");
    default:
        return refuse(Errc::header_bad_offsets, "data_offsets",
                      "an array of two unsigned 64-bit integers");
    }
}

bool HeaderEvents::end_tensor() {
    for (std::size_t i = 0; i < field_names.size(); ++i)
        if ((seen_fields_ & (1U << i)) == 0)
            return reject(
                Errc::header_missing_field,
                fmt::format("expected dtype, shape and data_offsets, found no {}", field_names[i]));
    if (!check_size())
        return false;
    header_.tensors.push_back(tensor_);
    place_ = Place::table;
    member_ = Member::none;
    return true;
}

bool HeaderEvents::check_size() {
    const Result<std::uint64_t> size =
        byte_size(tensor_.dtype, {tensor_.shape.data(), tensor_.shape.size()});
    if (!size)
        return reject(static_cast<Errc>(size.error().code.value()), size.error().detail);
    const auto [begin, end] = tensor_.data;
    if (begin > end)
        return reject(Errc::header_offsets_reversed,
                      fmt::format("expected begin <= end, found [{}, {})", begin, end));
    if (end - begin == *size)
        return true;
    if (end > data_bytes_)
        return reject(Errc::header_offsets_beyond_file,
                      fmt::format("expected offsets within the file's {} bytes of data, found "
                                  "[{}, {})",
                                  data_bytes_, begin, end));
    return reject(Errc::header_size_mismatch,
                  fmt::format("expected {} bytes for the dtype and shape, found [{}, {}), {} bytes",
                              *size, begin, end, end - begin));
}

bool HeaderEvents::reject(Errc code, std::string detail) {
    const bool in_tensor = place_ == Place::tensor || place_ == Place::shape ||
                           place_ == Place::data_offsets || place_ == Place::skipped ||
                           (place_ == Place::table && member_ == Member::tensor);
    // Error::message() leaves an empty name out, and the format allows one.
    if (in_tensor && tensor_.name.empty())
        detail.insert(0, "tensor \"\": ");
    error_ = Error{.code = code,
                   .operation = "parse header",
                   .file = file_,
                   .tensor = in_tensor ? tensor_.name.str() : std::string(),
                   .detail = std::move(detail)};
    return false;
}

} // namespace safering::safetensors
