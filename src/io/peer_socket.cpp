#include "io/peer_socket.hpp"

#include <array>
#include <cerrno>
#include <cstring>

#include <boost/asio/post.hpp>
#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace safering {

PeerSocket::PeerSocket(Executor executor, Descriptor connected) : socket_(executor) {
    socket_.assign(connected.get());
    (void)connected.release();
    ucred peer{};
    socklen_t length = sizeof peer;
    if (::getsockopt(socket_.native_handle(), SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0)
        return;
    process_ = peer.pid;
    same_user_ = peer.uid == ::geteuid();
    if (process_ > 0) {
        Descriptor pidfd(static_cast<int>(::syscall(SYS_pidfd_open, process_, 0)));
        if (pidfd) { // without one (a kernel before 5.3) the socket's end has to do
            life_.emplace(executor).assign(pidfd.get());
            (void)pidfd.release();
        } else {
            gone_ = errno == ESRCH; // a child of it may hold the socket
        }
    }
}

void PeerSocket::start(Handlers handlers) {
    received_.resize(max_message_bytes);
    handlers_ = std::make_shared<Handlers>(std::move(handlers));
    wait_readable();
    wait_for_death();
}

void PeerSocket::wait_readable() {
    socket_.async_wait(socket_.wait_read,
                       in_memory(read_memory_, [self = shared_from_this()](auto error) {
                           if (error || !self->handlers_)
                               return;
                           self->receive();
                           if (self->handlers_)
                               self->wait_readable();
                       }));
}

void PeerSocket::wait_for_death() {
    const auto on_death = [self = shared_from_this()](boost::system::error_code error) {
        if (error || !self->handlers_)
            return;
        self->receive(); // what it said before
        std::array<char, 64> why{};
        const auto text =
            fmt::format_to_n(why.data(), why.size(), "process {} has ended", self->process_);
        self->end({why.data(), text.out});
    };
    if (life_)
        life_->async_wait(life_->wait_read, in_memory(death_memory_, on_death));
    else if (gone_)
        boost::asio::post(socket_.get_executor(),
                          in_memory(death_memory_, [on_death] { on_death({}); }));
}

// What is there, until the peer's end or nothing more; somebody who sends for ever must not have the thread.
void PeerSocket::receive() {
    constexpr int at_once = 64;
    for (int i = 0; i < at_once && handlers_; ++i) {
        alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
        iovec part{received_.data(), received_.size()};
        msghdr message{};
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        message.msg_control = control.data();
        message.msg_controllen = control.size();
        const ssize_t got =
            ::recvmsg(socket_.native_handle(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (got < 0 && errno == EAGAIN)
            return;
        // A reset is told before what the peer said last.
        if (got < 0 && (errno == ECONNRESET || errno == EINTR))
            continue;
        if (got == 0)
            return end("the connection was closed");
        if (got < 0) {
            std::array<char, 128> why{};
            const auto text = fmt::format_to_n(why.data(), why.size(), "the connection broke: {}",
                                               std::strerror(errno));
            return end({why.data(), text.out});
        }
        if ((message.msg_flags & MSG_CTRUNC) != 0)
            return end("it sent a descriptor, and this process can have no more (ulimit -n)");
        Descriptor descriptor;
        if (const cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr &&
                                                             header->cmsg_level == SOL_SOCKET &&
                                                             header->cmsg_type == SCM_RIGHTS) {
            int number = -1;
            std::memcpy(&number, CMSG_DATA(header), sizeof number);
            descriptor = Descriptor(number);
        }
        const auto handlers = handlers_; // the handler may close this socket
        handlers->on_message(std::span(received_).first(static_cast<std::size_t>(got)),
                             std::move(descriptor));
    }
}

void PeerSocket::send(std::vector<std::byte> message, int descriptor) {
    SAFERING_ASSERT(message.size() <= max_message_bytes);
    outgoing_.push_back({std::move(message), descriptor});
    drain();
}

PeerSocket::Sent PeerSocket::try_send(const Outgoing& outgoing) {
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    iovec part{const_cast<std::byte*>(outgoing.bytes.data()), outgoing.bytes.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (outgoing.descriptor >= 0) {
        message.msg_control = control.data();
        message.msg_controllen = control.size();
        cmsghdr* header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        std::memcpy(CMSG_DATA(header), &outgoing.descriptor, sizeof(int));
    }
    for (;;) {
        if (::sendmsg(socket_.native_handle(), &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
            return Sent::yes;
        if (errno == EAGAIN)
            return Sent::full;
        if (errno != EINTR)
            return Sent::failed;
    }
}

// Whether nothing is left to be sent.
bool PeerSocket::flush() {
    while (!outgoing_.empty() && socket_.is_open()) {
        switch (try_send(outgoing_.front())) {
        case Sent::yes: outgoing_.pop_front(); break;
        case Sent::failed: outgoing_.clear(); break; // its end is received too, and told there
        case Sent::full: return false;
        }
    }
    return true;
}

void PeerSocket::drain() {
    if (draining_ || flush())
        return;
    draining_ = true;
    socket_.async_wait(socket_.wait_write,
                       in_memory(write_memory_, [self = shared_from_this()](auto error) {
                           self->draining_ = false;
                           if (!error)
                               self->drain();
                       }));
}

void PeerSocket::end(std::string_view why) {
    const auto handlers = handlers_;
    close();
    if (handlers)
        handlers->on_closed(why);
}

void PeerSocket::close() {
    handlers_.reset();
    (void)flush(); // room that the loop has not told of
    boost::system::error_code ignored;
    socket_.close(ignored);
    if (life_)
        life_->close(ignored);
}

} // namespace safering
