// Every line of the format's accept list and reject list, as a header and what is to come of it.
#pragma once

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include <safering/error.hpp>

namespace safering::safetensors {

struct HeaderCase {
    std::string name;
    std::string json;
    /// What the file holds behind the header.
    std::uint64_t data_bytes = 0;
    /// Nothing where the header is to be accepted.
    std::optional<Errc> expected{};
    /// The tensor that the error is to name.
    std::string tensor{};

    friend std::ostream& operator<<(std::ostream& out, const HeaderCase& value) {
        return out << value.name;
    }
};

std::vector<HeaderCase> accepted_cases();
std::vector<HeaderCase> rejected_cases();

} // namespace safering::safetensors
