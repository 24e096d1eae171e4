// What a file system grants: tried on a file that never gets a lasting name, remembered by device.
#pragma once

#include <map>
#include <mutex>

#include <sys/types.h>

#include <safering/reactor.hpp>

#include "io/descriptor.hpp"

namespace safering {

/// A new file in `directory`, to read and write, without a name or with one that it lost at once. None with errno.
Descriptor open_unnamed(const std::string& directory);

/// Thread-safe.
class FileSystems {
  public:
    Result<FileSystemInfo> at(const std::string& directory);

  private:
    std::mutex mutex_;
    std::map<dev_t, FileSystemInfo> known_;
};

} // namespace safering
