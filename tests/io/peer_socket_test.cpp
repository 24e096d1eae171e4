// Messages between processes of one host.
#include "io/peer_socket.hpp"

#include <array>

#include <sys/socket.h>

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

} // namespace
} // namespace safering::test
