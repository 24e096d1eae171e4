// Where ranks of one host find each other: a socket in the abstract namespace that belongs to a reactor.
//
// The name is random and travels in the ranks' plans, so that whoever connects took part in the planning; the
// kernel says that it is the same user. A process that has died refuses at once, one that is late is waited for:
// its kernel accepts in its place.
#pragma once

#include <array>
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
#include <safering/handler_memory.hpp>

#include "io/peer_socket.hpp"

namespace safering {

/// What a connection asks for. It lies in a socket's name, which is short, and so it needs no memory.
class PeerKey {
  public:
    /// What does not fit is left out: nobody can connect with such a key.
    explicit PeerKey(std::string_view text);
    /// A rank in an exchange.
    PeerKey(std::string_view exchange, std::uint32_t rank);

    operator std::string_view() const { return {text_.data(), size_}; }

  private:
    std::array<char, 108> text_;
    std::size_t size_;
};

/// All but endpoint(), claim() and refuse() on the executor's thread. create(), connect() and expect() throw
/// std::bad_alloc, and have done nothing then; the others need no memory.
class PeerHub : public std::enable_shared_from_this<PeerHub> {
  public:
    using Executor = PeerSocket::Executor;
    /// Must not throw; small enough to be copied without memory.
    /// Of a connection that this process cannot take in, for want of descriptors or memory, nothing says whose it is:
    /// all who expect one are told the error (rank 0), as nobody may hear of it otherwise.
    using OnConnected = std::function<void(Result<Descriptor> connection, std::uint32_t rank)>;

    /// Errors: what the system says where it grants no such socket.
    static Result<std::shared_ptr<PeerHub>> create(Executor executor);

    const Executor& executor() const { return executor_; }
    /// "<host>/<name>": kernel, network namespace and user, which both must share, then the socket's name.
    const std::string& endpoint() const { return endpoint_; }

    /// Whether nobody has claimed or refused the key so far, as far as it is remembered: of the last thousand. Any thread.
    bool claim(std::string_view key);

    /// Connects as `rank` to whoever expects `key` there. Errors: io_peer_lost.
    Result<std::shared_ptr<PeerSocket>> connect(const std::string& endpoint, std::string_view key,
                                                std::uint32_t rank);
    /// Calls back for every connection that asks for `key`, those that came already included, until
    /// forget(key).
    void expect(std::string_view key, OnConnected on_connected);
    /// Whoever asks for the key finds the connection closed from now on: what it stands for takes place once.
    void forget(std::string_view key);
    /// The same for one that is not expected, now or later, and for those that came already. Any thread.
    void refuse(std::string_view key);
    /// Looks for connections now.
    void poll() { accept_all(); }

  private:
    struct Arrived {
        PeerKey key;
        std::uint32_t rank;
        Descriptor connection;
    };

    PeerHub(Executor executor, Descriptor listening, std::string endpoint);
    void wait_for_connections();
    void accept_all();
    void tell_all(int error);
    void take(Descriptor connection);
    void route(std::string_view key, std::uint32_t rank, Descriptor connection);
    void keep(Arrived arrived);
    std::optional<Arrived> take_early(std::string_view key);

    Executor executor_;
    boost::asio::posix::stream_descriptor listening_;
    std::string endpoint_;
    std::map<std::string, OnConnected, std::less<>> expected_;
    bool waiting_ = false;
    std::shared_ptr<HandlerMemory> wait_memory_;

    // What is known of the last exchanges that there were.
    enum class Stage : std::uint8_t { claimed, over };
    struct Known {
        std::size_t key; // its hash
        Stage stage;
    };
    Known* find_known(std::string_view key);
    void set_known(std::string_view key, Stage stage);

    mutable std::mutex mutex_; // of what follows; both have room for all that they may hold
    std::vector<Known> known_;
    std::size_t oldest_known_ = 0;
    // For ranks of this process that have not come so far.
    std::vector<Arrived> early_;
};

} // namespace safering
