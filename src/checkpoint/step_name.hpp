// Names beside the checkpoints of a run: which are a step's, and which hidden ones are ours. Pure. Nothing is
// removed whose name does not match one of these as a whole.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace safering::checkpoint {

struct StepName {
    std::string prefix;
    std::uint64_t step = 0;

    friend bool operator==(const StepName&, const StepName&) = default;
};
/// `<prefix>-<digits>` or `<prefix>_<digits>`: a prefix that does not begin with a dot, then 1 to 18 digits.
std::optional<StepName> parse_step_name(std::string_view name);

/// ".<target>.<id>.<suffix>", where the id is 32 hex digits and begins with its time.
struct HiddenName {
    std::string target;
    std::string id;
};
inline constexpr std::string_view attempt_suffix = "tmp";
inline constexpr std::string_view removal_suffix = "removed";
std::string hidden_name(std::string_view target, std::string_view id, std::string_view suffix);
std::optional<HiddenName> parse_hidden_name(std::string_view name, std::string_view suffix);

/// The file that names the newest checkpoint of its directory.
inline constexpr std::string_view pointer_name = "latest";
/// The name that such a file holds: one plain component of a step's form and a line end, which may lack.
std::optional<std::string> parse_pointer(std::string_view text);

} // namespace safering::checkpoint
