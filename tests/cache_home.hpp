// An empty place for the measurements of file systems, in which they count.
#pragma once

#include <cstdlib>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "io/backends.hpp"

namespace safering::test {

/// While it lives the process's cache is here; afterwards the environment is as it was. No other thread may look
/// into the environment when it comes and goes.
class CacheHome {
  public:
    CacheHome() {
        for (const char* name : {"XDG_CACHE_HOME", "HOME", "SAFERING_TUNING"}) {
            const char* value = std::getenv(name);
            before_.emplace_back(name, value == nullptr ? std::nullopt
                                                        : std::optional<std::string>(value));
        }
        ::setenv("XDG_CACHE_HOME", directory_.path().c_str(), 1);
        ::unsetenv("SAFERING_TUNING");
    }
    CacheHome(const CacheHome&) = delete;
    CacheHome& operator=(const CacheHome&) = delete;
    ~CacheHome() {
        for (const auto& [name, value] : before_)
            if (value)
                ::setenv(name.c_str(), value->c_str(), 1);
            else
                ::unsetenv(name.c_str());
    }
    const std::string& path() const { return directory_.path(); }

  private:
    TemporaryDirectory directory_;
    std::vector<std::pair<std::string, std::optional<std::string>>> before_;
};

} // namespace safering::test
