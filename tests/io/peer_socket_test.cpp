// Messages between processes of one host.
#include "io/peer_socket.hpp"

#include <algorithm>
#include <array>
#include <cstddef>

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

namespace safering::test {
namespace {

constexpr std::size_t message_bytes = std::size_t{32} << 10;

// Messages that are there.
int receive_all(int socket) {
    std::vector<std::byte> buffer(message_bytes);
    int received = 0;
    while (::recv(socket, buffer.data(), buffer.size(), MSG_DONTWAIT) > 0)
        ++received;
    return received;
}

TEST(PeerSocket, WhatIsSaidLastLeavesBeforeTheEnd) {
    std::array<int, 2> ends{};
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends.data()),
              0);
    const Descriptor other(ends[1]);
    const int held = 4 * message_bytes; // the kernel doubles it
    ASSERT_EQ(::setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &held, sizeof held), 0);
    boost::asio::io_context context;
    const auto socket = std::make_shared<PeerSocket>(context.get_executor(), Descriptor(ends[0]));
    constexpr int messages = 9;
    for (int i = 0; i < messages; ++i)
        socket->send(std::vector<std::byte>(message_bytes));
    const int received = receive_all(other.get());
    ASSERT_LT(received, messages); // the socket was full
    socket->close();               // there is room, and the loop has not told
    EXPECT_EQ(received + receive_all(other.get()), messages);
}

// Listens, leaves the socket to a child that lives until `hold` closes, and is gone.
void listen_and_die(const sockaddr_un& address, socklen_t length, const std::array<int, 2>& hold) {
    const pid_t listener = ::fork();
    if (listener == 0) {
        const int socket = ::socket(AF_UNIX, SOCK_SEQPACKET, 0);
        const bool good =
            ::bind(socket, reinterpret_cast<const sockaddr*>(&address), length) == 0 &&
            ::listen(socket, 1) == 0;
        if (good && ::fork() == 0) {
            ::close(hold[1]);
            char byte = 0;
            ::_exit(::read(hold[0], &byte, 1) == 0 ? 0 : 1);
        }
        ::_exit(good ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(listener, &status, 0), listener);
    ASSERT_EQ(status, 0);
}

TEST(PeerSocket, AProcessThatIsGoneIsHeardOfThoughAChildHoldsItsSocket) {
    std::array<int, 2> hold{};
    ASSERT_EQ(::pipe2(hold.data(), O_CLOEXEC), 0);
    const Descriptor reading(hold[0]), writing(hold[1]);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string name = "safering-peer-socket-test-" + std::to_string(::getpid());
    std::ranges::copy(name, address.sun_path + 1);
    const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
    listen_and_die(address, length, hold);

    Descriptor connected(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    ASSERT_EQ(::connect(connected.get(), reinterpret_cast<const sockaddr*>(&address), length), 0);
    boost::asio::io_context context;
    const auto socket = std::make_shared<PeerSocket>(context.get_executor(), std::move(connected));
    std::string why;
    socket->start({.on_message = [](std::span<const std::byte>, const Descriptor&) {},
                   .on_closed = [&](std::string_view said) { why = said; }});
    while (why.empty() && context.run_one_for(std::chrono::seconds(60)) != 0)
        ;
    EXPECT_NE(why.find("has ended"), std::string::npos) << why;
}

} // namespace
} // namespace safering::test
