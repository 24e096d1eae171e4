#include "mounted.hpp"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <stdexcept>

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <unistd.h>

namespace safering::test {

namespace {

namespace fs = std::filesystem;

// EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN: the same number, and the same flags.
constexpr unsigned long shutdown_request = _IOR('X', 125, std::uint32_t);
constexpr std::uint32_t flush_journal = 1, drop_journal = 2;

void run(const std::string& command) {
    if (std::system((command + " >/dev/null 2>&1").c_str()) != 0)
        throw std::runtime_error("this machine refuses: " + command);
}

// What is mounted here is seen by this process and its children alone, and goes with the last of them.
void leave_the_others() {
    static const bool left = ::unshare(CLONE_NEWNS) == 0 &&
                             ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
    if (!left)
        throw std::runtime_error("this machine grants no mount namespace");
}

} // namespace

Mounted::Mounted(FileSystemKind kind) : kind_(std::move(kind)) {
    std::string root = (fs::current_path() / "mounts.XXXXXX").string();
    if (::geteuid() != 0)
        throw std::runtime_error("mounting takes root");
    leave_the_others();
    if (::mkdtemp(root.data()) == nullptr)
        throw std::runtime_error(fmt::format("mkdtemp: {}", std::strerror(errno)));
    root_ = root;
    image_ = root_ + "/image";
    path_ = root_ + "/mounted";
    try {
        fs::create_directory(path_);
        if (!kind_.make.empty()) {
            const int file = ::open(image_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
            const bool sized = file >= 0 && ::ftruncate(file, static_cast<off_t>(kind_.bytes)) == 0;
            ::close(file);
            if (!sized)
                throw std::runtime_error(fmt::format("{}: {}", image_, std::strerror(errno)));
            run(kind_.make + ' ' + image_);
        }
        mount();
    } catch (...) {
        fs::remove_all(root_);
        throw;
    }
}

Mounted::~Mounted() {
    if (unmount()) {
        std::error_code ignored; // a leftover in the build folder
        fs::remove_all(root_, ignored);
    }
}

void Mounted::mount() {
    if (kind_.make.empty())
        run(fmt::format("mount -t {} -o size={} none {}", kind_.type, kind_.bytes, path_));
    else
        run(fmt::format("mount -t {} -o loop {} {}", kind_.type, image_, path_));
    mounted_ = true;
}

bool Mounted::unmount() noexcept {
    if (!mounted_)
        return true;
    mounted_ = false;
    // What was submitted may take a moment to end after its process.
    for (int i = 0; i < 250; ++i) {
        if (::umount2(path_.c_str(), 0) == 0)
            return true;
        ::usleep(20'000);
    }
    ::umount2(path_.c_str(), MNT_DETACH);
    return false;
}

void Mounted::cut_power(bool with_journal) const {
    const int directory = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const std::uint32_t flags = with_journal ? flush_journal : drop_journal;
    const bool cut = directory >= 0 && ::ioctl(directory, shutdown_request, &flags) == 0;
    const int error = errno;
    if (directory >= 0)
        ::close(directory);
    if (!cut)
        throw std::runtime_error(
            fmt::format("{} cannot be shut down: {}", kind_.type, std::strerror(error)));
}

bool Mounted::mount_again() {
    if (!unmount())
        return false;
    mount();
    return true;
}

std::uint64_t Mounted::free_bytes() const {
    struct statvfs status{};
    if (::statvfs(path_.c_str(), &status) != 0)
        throw std::runtime_error(fmt::format("statvfs: {}", std::strerror(errno)));
    return std::uint64_t{status.f_bavail} * status.f_frsize;
}

} // namespace safering::test
