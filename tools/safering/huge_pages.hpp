// Whether buffers can lie on transparent huge pages, which decides how fast direct I/O is.
#pragma once

#include <string>

#include "command.hpp"

namespace safering::tools {

struct HugePages {
    /// "always", "madvise" or "never"; empty where the kernel does not say.
    std::string setting;
    /// Whether memory advised to be on huge pages really was.
    bool granted = false;

    std::string words() const;
};

HugePages probe_huge_pages();
Json to_json(const HugePages& huge_pages);

} // namespace safering::tools
