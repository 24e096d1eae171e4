// What a file system grants: tried on a file that never gets a lasting name, remembered by device.
#pragma once

#include <map>
#include <mutex>

#include <sys/types.h>

#include <safering/reactor.hpp>

namespace safering {

/// Thread-safe.
class FileSystems {
  public:
    Result<FileSystemInfo> at(const std::string& directory);

  private:
    std::mutex mutex_;
    std::map<dev_t, FileSystemInfo> known_;
};

} // namespace safering
