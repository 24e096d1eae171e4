#include "io/peer_hub.hpp"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <functional>
#include <random>
#include <utility>

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "endpoint.hpp"
#include "out_of_memory.hpp"

namespace safering {

namespace {

std::string random_text() {
    std::random_device random;
    return fmt::format("{:08x}{:08x}{:08x}{:08x}", random(), random(), random(), random());
}

// What two processes must share to reach each other's sockets and memory.
std::string host_text() {
    std::string boot;
    std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
    struct stat network{};
    if (boot.empty() || ::stat("/proc/self/ns/net", &network) != 0)
        return {};
    return fmt::format("{}.{}.{}", boot, network.st_ino, ::geteuid());
}

struct Address {
    sockaddr_un name{};
    socklen_t length = 0;

    sockaddr* get() { return reinterpret_cast<sockaddr*>(&name); }
};

// In the abstract namespace, which begins with a null byte and leaves nothing in a file system.
std::optional<Address> abstract_address(std::string_view text) {
    Address address;
    address.name.sun_family = AF_UNIX;
    if (text.size() + 1 > sizeof address.name.sun_path)
        return std::nullopt;
    std::memcpy(address.name.sun_path + 1, text.data(), text.size());
    address.length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + text.size());
    return address;
}

Descriptor make_socket() {
    return Descriptor(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

// "<key>/<rank>/<random>": a connection tells by its own name what it is for.
std::string name_of(std::string_view key, std::uint32_t rank) {
    return fmt::format("{}/{}/{}", key, rank, random_text().substr(0, 8));
}

std::optional<std::pair<std::string_view, std::uint32_t>> parse_name(std::string_view name) {
    const std::size_t last = name.rfind('/');
    if (last == std::string_view::npos || last == 0)
        return std::nullopt;
    const std::size_t before = name.rfind('/', last - 1);
    if (before == std::string_view::npos)
        return std::nullopt;
    const std::string_view number = name.substr(before + 1, last - before - 1);
    std::uint32_t rank = 0;
    const auto parsed = std::from_chars(number.data(), number.data() + number.size(), rank);
    if (parsed.ec != std::errc() || parsed.ptr != number.data() + number.size())
        return std::nullopt;
    return std::pair(name.substr(0, before), rank);
}

constexpr std::size_t most_known = 1024;
constexpr std::size_t most_early = 256;

bool hung_up(const Descriptor& connection) {
    pollfd polled{.fd = connection.get(), .events = 0, .revents = 0};
    return ::poll(&polled, 1, 0) == 1 && (polled.revents & POLLHUP) != 0;
}

std::unexpected<Error> system_failure(std::string operation, std::string detail = {}) {
    return fail({errno, std::system_category()}, std::move(operation), std::move(detail));
}

} // namespace

PeerKey::PeerKey(std::string_view text) : size_(std::min(text.size(), text_.size())) {
    std::copy_n(text.data(), size_, text_.data());
}

PeerKey::PeerKey(std::string_view exchange, std::uint32_t rank) {
    const auto text = fmt::format_to_n(text_.data(), text_.size(), "{}/{}", exchange, rank);
    size_ = static_cast<std::size_t>(text.out - text_.data());
}

Result<std::shared_ptr<PeerHub>> PeerHub::create(Executor executor) {
    const std::string host = host_text();
    if (host.empty())
        return fail(std::make_error_code(std::errc::no_such_file_or_directory), "identify the host",
                    "/proc is not readable");
    const std::string name = "safering-" + random_text();
    auto address = abstract_address(name);
    Descriptor listening = make_socket();
    if (!listening || ::bind(listening.get(), address->get(), address->length) != 0 ||
        ::listen(listening.get(), SOMAXCONN) != 0)
        return system_failure("listen for ranks of this host");
    return std::shared_ptr<PeerHub>(new PeerHub(executor, std::move(listening), host + '/' + name));
}

PeerHub::PeerHub(Executor executor, Descriptor listening, std::string endpoint)
    : executor_(executor), listening_(executor), endpoint_(std::move(endpoint)) {
    listening_.assign(listening.get());
    (void)listening.release();
    wait_memory_ = std::make_shared<HandlerMemory>();
    known_.reserve(most_known);
    early_.reserve(most_early);
}

PeerHub::Known* PeerHub::find_known(std::string_view key) {
    const auto found = std::ranges::find(known_, std::hash<std::string_view>()(key), &Known::key);
    return found == known_.end() ? nullptr : &*found;
}

void PeerHub::set_known(std::string_view key, Stage stage) {
    const Known known{std::hash<std::string_view>()(key), stage};
    if (Known* found = find_known(key))
        *found = known;
    else if (known_.size() < most_known)
        known_.push_back(known);
    else
        known_[oldest_known_++ % most_known] = known;
}

bool PeerHub::claim(std::string_view key) {
    const std::lock_guard lock(mutex_);
    if (find_known(key) != nullptr)
        return false;
    set_known(key, Stage::claimed);
    return true;
}

Result<std::shared_ptr<PeerSocket>> PeerHub::connect(const std::string& endpoint,
                                                     std::string_view key, std::uint32_t rank) {
    const std::string operation = "connect to a rank of this host";
    const std::string_view host = host_of(endpoint);
    auto peer = host.empty() ? std::nullopt
                             : abstract_address(std::string_view(endpoint).substr(host.size() + 1));
    auto own = abstract_address(name_of(key, rank));
    if (host != host_of(endpoint_) || !peer || !own)
        return fail(Errc::plan_bad_bytes, operation,
                    fmt::format("\"{}\" is no rank of this host", escaped(endpoint)));
    Descriptor socket = make_socket();
    if (!socket || ::bind(socket.get(), own->get(), own->length) != 0)
        return system_failure(operation);
    if (::connect(socket.get(), peer->get(), peer->length) != 0)
        return errno == ECONNREFUSED ? fail(Errc::io_peer_lost, operation, "its process has ended")
                                     : system_failure(operation);
    auto connected = std::make_shared<PeerSocket>(executor_, std::move(socket));
    if (!connected->same_user())
        return fail(Errc::io_peer_lost, operation, "another user answers");
    return connected;
}

void PeerHub::expect(std::string_view key, OnConnected on_connected) {
    const auto [expected, inserted] = expected_.emplace(key, std::move(on_connected));
    SAFERING_ASSERT(inserted);
    if (!std::exchange(waiting_, true))
        wait_for_connections();
    while (auto arrived = take_early(key))
        route(key, arrived->rank, std::move(arrived->connection));
}

// Nothing more where what is called has forgotten the key: then it is over.
std::optional<PeerHub::Arrived> PeerHub::take_early(std::string_view key) {
    const std::lock_guard lock(mutex_);
    const auto found =
        std::ranges::find_if(early_, [&](const Arrived& arrived) { return arrived.key == key; });
    if (found == early_.end())
        return std::nullopt;
    std::optional<Arrived> taken(std::move(*found));
    early_.erase(found);
    return taken;
}

// While nobody expects anything nothing is waited for, so that an embedder's io_context runs out of work.
void PeerHub::forget(std::string_view key) {
    refuse(key);
    if (const auto expected = expected_.find(key); expected != expected_.end())
        expected_.erase(expected);
    if (expected_.empty())
        listening_.cancel();
}

void PeerHub::refuse(std::string_view key) {
    const std::lock_guard lock(mutex_);
    set_known(key, Stage::over);
    std::erase_if(early_, [&](const Arrived& arrived) { return arrived.key == key; });
}

void PeerHub::wait_for_connections() {
    // Weak: the last turn of an embedder's io_context may come after the reactor's end.
    const auto on_wait = [weak = weak_from_this(), memory = wait_memory_](auto error) {
        const auto self = weak.lock();
        if (!self)
            return;
        if (!error)
            self->accept_all();
        if (self->expected_.empty())
            self->waiting_ = false;
        else
            self->wait_for_connections();
    };
    listening_.async_wait(listening_.wait_read, in_memory(*wait_memory_, on_wait));
}

void PeerHub::accept_all() {
    for (;;) {
        Descriptor connection(
            ::accept4(listening_.native_handle(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
        if (!connection) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
                (void)had_memory([this, error = errno] { tell_all(error); });
            return;
        }
        take(std::move(connection));
    }
}

void PeerHub::tell_all(int error) {
    std::vector<OnConnected> all; // what is called may forget its key
    for (const auto& [key, on_connected] : expected_)
        all.push_back(on_connected);
    for (const OnConnected& on_connected : all)
        on_connected(fail(std::error_code(error, std::system_category()),
                          "take in a connection of a rank of this host",
                          "each takes two descriptors, and two more on a kernel from 5.3 on; raise "
                          "the limit of open files (ulimit -n)"),
                     0);
}

void PeerHub::take(Descriptor connection) {
    Address peer;
    peer.length = sizeof peer.name;
    ucred who{};
    socklen_t length = sizeof who;
    if (::getpeername(connection.get(), peer.get(), &peer.length) != 0 ||
        ::getsockopt(connection.get(), SOL_SOCKET, SO_PEERCRED, &who, &length) != 0)
        return;
    constexpr auto name_begin = offsetof(sockaddr_un, sun_path) + 1;
    if (who.uid != ::geteuid() || peer.length <= name_begin)
        return;
    auto name = parse_name({peer.name.sun_path + 1, peer.length - name_begin});
    if (name)
        route(name->first, name->second, std::move(connection));
}

void PeerHub::route(std::string_view key, std::uint32_t rank, Descriptor connection) {
    const auto expected = expected_.find(key);
    if (expected != expected_.end()) {
        const OnConnected on_connected = expected->second; // it may forget the key
        return on_connected(std::move(connection), rank);
    }
    const std::lock_guard lock(mutex_);
    const Known* known = find_known(key);
    if (known == nullptr ||
        known->stage != Stage::over) // else its rank sees the end of the connection
        keep({PeerKey(key), rank, std::move(connection)});
}

// Nobody may ever come for one. One whose rank has hung up is kept while there is room: it may tell why.
void PeerHub::keep(Arrived arrived) {
    if (early_.size() == most_early) {
        const auto gone = std::ranges::find_if(early_, hung_up, &Arrived::connection);
        early_.erase(gone == early_.end() ? early_.begin() : gone);
    }
    early_.push_back(std::move(arrived));
}

} // namespace safering
