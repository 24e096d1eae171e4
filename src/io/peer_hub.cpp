#include "io/peer_hub.hpp"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <random>
#include <utility>

#include <boost/asio/post.hpp>
#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "endpoint.hpp"

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

std::optional<std::pair<std::string, std::uint32_t>> parse_name(std::string_view name) {
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
    return std::pair(std::string(name.substr(0, before)), rank);
}

bool hung_up(const Descriptor& connection) {
    pollfd polled{.fd = connection.get(), .events = 0, .revents = 0};
    return ::poll(&polled, 1, 0) == 1 && (polled.revents & POLLHUP) != 0;
}

std::unexpected<Error> system_failure(std::string operation, std::string detail = {}) {
    return fail({errno, std::system_category()}, std::move(operation), std::move(detail));
}

} // namespace

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
}

bool PeerHub::claim(std::string key) {
    const std::lock_guard lock(known_mutex_);
    return known_.emplace(std::move(key), Stage::claimed).second;
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

void PeerHub::expect(const std::string& key, OnConnected on_connected) {
    const auto [expected, inserted] = expected_.emplace(key, std::move(on_connected));
    SAFERING_ASSERT(inserted);
    std::vector<Arrived> early = std::exchange(early_, {});
    for (Arrived& arrived : early)
        route(std::move(arrived));
    if (!std::exchange(waiting_, true))
        wait_for_connections();
}

// While nobody expects anything nothing is waited for, so that an embedder's io_context runs out of work.
void PeerHub::forget(const std::string& key) {
    set_over(key);
    expected_.erase(key);
    if (expected_.empty())
        listening_.cancel();
}

void PeerHub::refuse(std::string key) {
    set_over(key);
    boost::asio::post(executor_, [weak = weak_from_this(), key = std::move(key)] {
        if (const auto self = weak.lock())
            std::erase_if(self->early_, [&](const Arrived& arrived) { return arrived.key == key; });
    });
}

void PeerHub::set_over(const std::string& key) {
    const std::lock_guard lock(known_mutex_);
    known_.insert_or_assign(key, Stage::over);
}

bool PeerHub::is_over(const std::string& key) const {
    const std::lock_guard lock(known_mutex_);
    const auto known = known_.find(key);
    return known != known_.end() && known->second == Stage::over;
}

void PeerHub::wait_for_connections() {
    // Weak: the last turn of an embedder's io_context may come after the reactor's end.
    listening_.async_wait(listening_.wait_read, [weak = weak_from_this()](auto error) {
        const auto self = weak.lock();
        if (!self)
            return;
        if (!error)
            self->accept_all();
        if (self->expected_.empty())
            self->waiting_ = false;
        else
            self->wait_for_connections();
    });
}

void PeerHub::accept_all() {
    for (;;) {
        Descriptor connection(
            ::accept4(listening_.native_handle(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
        if (!connection)
            return;
        take(std::move(connection));
    }
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
        route({std::move(name->first), name->second, std::move(connection)});
}

void PeerHub::route(Arrived arrived) {
    const auto expected = expected_.find(arrived.key);
    if (expected != expected_.end()) {
        const OnConnected on_connected = expected->second; // it may forget the key
        on_connected(std::make_shared<PeerSocket>(executor_, std::move(arrived.connection)),
                     arrived.rank);
        return;
    }
    if (!is_over(arrived.key)) // else its rank sees the end of the connection
        keep(std::move(arrived));
}

// Nobody may ever come for one. One whose rank has hung up is kept while there is room: it may tell why.
void PeerHub::keep(Arrived arrived) {
    constexpr std::size_t most_early = 256;
    if (early_.size() == most_early) {
        const auto gone = std::ranges::find_if(early_, hung_up, &Arrived::connection);
        early_.erase(gone == early_.end() ? early_.begin() : gone);
    }
    early_.push_back(std::move(arrived));
}

} // namespace safering
