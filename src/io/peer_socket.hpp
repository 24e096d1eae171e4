// Messages between two processes of one host, and word of the other's death.
//
// A SOCK_SEQPACKET socket of the Unix domain: what is sent as one message arrives as one, and a descriptor may
// come with it. The end is seen by the socket and, as a forked child of the peer may hold that open, by a pidfd.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>

#include "io/descriptor.hpp"

namespace safering {

/// All of it on the executor's thread.
class PeerSocket : public std::enable_shared_from_this<PeerSocket> {
  public:
    using Executor = boost::asio::io_context::executor_type;
    struct Handlers {
        /// A message, and the descriptor that came with it, if one did.
        std::function<void(std::span<const std::byte>, Descriptor)> on_message;
        /// Nothing will come any more, and why. Not after close().
        std::function<void(std::string)> on_closed;
    };
    static constexpr std::size_t max_message_bytes = std::size_t{64} << 10;

    /// `connected` is not blocking. `receive_now` in the handlers' place reads single messages by hand.
    PeerSocket(Executor executor, Descriptor connected);
    /// Begins to receive.
    void start(Handlers handlers);
    /// Queued where the socket is full. `descriptor` is borrowed until the message has left: keep it open.
    void send(std::vector<std::byte> message, int descriptor = -1);
    /// The handlers are not called any more, and what they hold is released.
    void close();

    /// Of the peer, as this process knows it; 0 where it is in another PID namespace.
    int process() const { return process_; }
    /// Whether the peer runs as the same user.
    bool same_user() const { return same_user_; }

  private:
    struct Outgoing {
        std::vector<std::byte> bytes;
        int descriptor;
    };
    enum class Sent { yes, full, failed };

    void wait_readable();
    void wait_for_death();
    void receive();
    Sent try_send(const Outgoing& message);
    void drain();
    void end(std::string why);

    boost::asio::posix::stream_descriptor socket_;
    std::optional<boost::asio::posix::stream_descriptor> life_; // a pidfd
    bool gone_ = false;                                         // before there could be one
    std::shared_ptr<Handlers> handlers_;
    std::deque<Outgoing> outgoing_;
    bool draining_ = false;
    int process_ = 0;
    bool same_user_ = false;
};

} // namespace safering
