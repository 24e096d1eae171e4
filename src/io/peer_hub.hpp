// Where ranks of one host find each other: a socket in the abstract namespace that belongs to a reactor.
//
// The name is random and travels in the ranks' plans, so that whoever connects took part in the planning; the
// kernel says that it is the same user. A process that has died refuses at once, one that is late is waited for:
// its kernel accepts in its place.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <safering/error.hpp>

#include "io/peer_socket.hpp"

namespace safering {

/// All but endpoint(), claim() and refuse() on the executor's thread.
class PeerHub : public std::enable_shared_from_this<PeerHub> {
  public:
    using Executor = PeerSocket::Executor;
    using OnConnected = std::function<void(std::shared_ptr<PeerSocket>, std::uint32_t rank)>;

    /// Errors: what the system says where it grants no such socket.
    static Result<std::shared_ptr<PeerHub>> create(Executor executor);

    /// "<host>/<name>": kernel, network namespace and user, which both must share, then the socket's name.
    const std::string& endpoint() const { return endpoint_; }

    /// Whether nobody has claimed or refused the key so far. Any thread.
    bool claim(std::string key);

    /// Connects as `rank` to whoever expects `key` there. Errors: io_peer_lost.
    Result<std::shared_ptr<PeerSocket>> connect(const std::string& endpoint, std::string_view key,
                                                std::uint32_t rank);
    /// Calls back for every connection that asks for `key`, those that came already included, until
    /// forget(key). The sockets are not started.
    void expect(const std::string& key, OnConnected on_connected);
    /// Whoever asks for the key finds the connection closed from now on: what it stands for takes place once.
    void forget(const std::string& key);
    /// The same for one that is not expected, now or later, and for those that came already. Any thread.
    void refuse(std::string key);
    /// Looks for connections now.
    void poll() { accept_all(); }

  private:
    struct Arrived {
        std::string key;
        std::uint32_t rank;
        Descriptor connection;
    };

    PeerHub(Executor executor, Descriptor listening, std::string endpoint);
    void wait_for_connections();
    void accept_all();
    void take(Descriptor connection);
    void route(Arrived arrived);
    void keep(Arrived arrived);
    void set_over(const std::string& key);
    bool is_over(const std::string& key) const;

    Executor executor_;
    boost::asio::posix::stream_descriptor listening_;
    std::string endpoint_;
    std::map<std::string, OnConnected, std::less<>> expected_;
    // For ranks of this process that have not come so far.
    std::vector<Arrived> early_;
    bool waiting_ = false;
    enum class Stage : std::uint8_t { claimed, over };
    mutable std::mutex known_mutex_;
    std::map<std::string, Stage> known_; // of all exchanges that there were, some bytes each
};

} // namespace safering
