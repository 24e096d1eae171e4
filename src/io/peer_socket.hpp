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
#include <string_view>
#include <vector>

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>

#include <safering/handler_memory.hpp>

#include "io/descriptor.hpp"

namespace safering {

/// All of it on the executor's thread. A message wants memory to be sent, and none to be received.
class PeerSocket : public std::enable_shared_from_this<PeerSocket> {
  public:
    using Executor = boost::asio::io_context::executor_type;
    struct Handlers {
        /// A message, and the descriptor that came with it, if one did.
        std::function<void(std::span<const std::byte>, Descriptor)> on_message;
        /// Nothing will come any more, and why. Not after close().
        std::function<void(std::string_view)> on_closed;
    };
    static constexpr std::size_t max_message_bytes = std::size_t{64} << 10;

    /// `connected` is not blocking.
    PeerSocket(Executor executor, Descriptor connected);
    /// Begins to receive. Throws std::bad_alloc, and has begun nothing then; afterwards the handlers are called from the
    /// executor's loop, and must not throw.
    void start(Handlers handlers);
    /// Queued where the socket is full. `descriptor` is borrowed until the message has left: keep it open. Throws
    /// std::bad_alloc, and has sent nothing then.
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
    bool flush();
    void drain();
    void end(std::string_view why);

    boost::asio::posix::stream_descriptor socket_;
    std::optional<boost::asio::posix::stream_descriptor> life_; // a pidfd
    bool gone_ = false;                                         // before there could be one
    std::shared_ptr<Handlers> handlers_;
    std::vector<std::byte> received_;
    std::deque<Outgoing> outgoing_;
    bool draining_ = false;
    HandlerMemory read_memory_;
    HandlerMemory death_memory_;
    HandlerMemory write_memory_;
    int process_ = 0;
    bool same_user_ = false;
};

} // namespace safering
