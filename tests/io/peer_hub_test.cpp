// Connections of ranks that come early, late, or for nobody.
#include "io/peer_hub.hpp"

#include <boost/asio/io_context.hpp>

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include "../descriptors.hpp"

namespace safering::test {
namespace {

struct Hub {
    Hub() : hub(value_or_throw(PeerHub::create(context.get_executor()))) {}

    std::shared_ptr<PeerSocket> connect(const std::string& key) {
        return value_or_throw(hub->connect(hub->endpoint(), key, 7));
    }
    void expect(const std::string& key, int& count) {
        hub->expect(
            key, [&count](const Result<Descriptor>&, std::uint32_t rank) { count += rank == 7; });
    }
    void settle() {
        context.restart();
        context.poll();
        hub->poll();
    }

    boost::asio::io_context context;
    std::shared_ptr<PeerHub> hub;
};

TEST(PeerHub, WhoComesEarlyIsKept) {
    Hub hub;
    int other = 0, wanted = 0;
    hub.expect("other", other); // somebody looks
    const auto socket = hub.connect("wanted");
    hub.settle();
    hub.expect("wanted", wanted);
    EXPECT_EQ(wanted, 1);
    EXPECT_EQ(other, 0);
    hub.hub->forget("wanted");
    hub.hub->forget("other");
    hub.settle();
}

// A rank whose partner has failed before it came itself connects to somebody who never comes again.
TEST(PeerHub, WhoComesTooLateIsNotKept) {
    Hub hub;
    int ignored = 0;
    hub.expect("other", ignored);
    hub.settle();
    const std::int64_t before = open_descriptors();
    for (int i = 0; i < 20; ++i) {
        const std::string key = "exchange-" + std::to_string(i);
        hub.expect(key, ignored);
        hub.hub->forget(key);
        std::string why;
        const auto late = hub.connect(key);
        late->start({.on_message = [](std::span<const std::byte>, const Descriptor&) {},
                     .on_closed = [&](std::string_view text) { why = text; }});
        hub.settle();
        hub.settle();
        EXPECT_NE(why, "") << "it would wait for ever";
    }
    EXPECT_EQ(open_descriptors(), before);
    hub.hub->forget("other");
    hub.settle();
}

TEST(PeerHub, WhoComesForOneThatWasRefusedIsNotKept) {
    Hub hub;
    int other = 0;
    hub.expect("other", other);
    hub.settle();
    const std::int64_t before = open_descriptors();
    hub.connect("refused")->close(); // came before
    hub.settle();
    hub.hub->refuse("refused");
    hub.settle();
    hub.connect("refused")->close(); // and after
    hub.settle();
    EXPECT_EQ(open_descriptors(), before);
    hub.hub->forget("other");
    hub.settle();
}

// Both ways: what was refused is not begun afterwards.
TEST(PeerHub, WhatWasRefusedCannotBeClaimed) {
    Hub hub;
    EXPECT_TRUE(hub.hub->claim("begun"));
    EXPECT_FALSE(hub.hub->claim("begun"));
    hub.hub->refuse("refused");
    EXPECT_FALSE(hub.hub->claim("refused"));
    hub.settle();
}

// A rank that waits must not lose its place to connections that nobody holds any more.
TEST(PeerHub, WhoHasHungUpGoesBeforeWhoWaits) {
    Hub hub;
    int other = 0, wanted = 0;
    hub.expect("other", other);
    const auto waits = hub.connect("wanted");
    hub.settle();
    for (int i = 0; i < 300; ++i) {
        hub.connect("nobody")->close();
        hub.settle();
    }
    hub.expect("wanted", wanted);
    EXPECT_EQ(wanted, 1);
    hub.hub->forget("wanted");
    hub.hub->forget("other");
    hub.settle();
}

// Nobody would hear of it otherwise, and both would wait.
TEST(PeerHub, WhoHasNoDescriptorLeftIsTold) {
    Hub hub;
    std::error_code told;
    int came = 0;
    hub.hub->expect("wanted", [&](const Result<Descriptor>& connection, std::uint32_t) {
        came += connection ? 1 : 0;
        told = connection ? std::error_code() : connection.error().code;
    });
    hub.settle();
    const auto early = hub.connect("wanted");
    rlimit limit{};
    ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
    const int next = ::dup(0); // all below it are taken
    ::close(next);
    const rlimit none{static_cast<rlim_t>(next), limit.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
    hub.hub->poll();
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
    EXPECT_EQ(told, std::errc::too_many_files_open);
    EXPECT_EQ(came, 0);
    hub.settle();
    EXPECT_EQ(came, 1);
    hub.hub->forget("wanted");
    hub.settle();
}

// A rank that fails before its partner has come says why, and hangs up.
TEST(PeerHub, WhoHasHungUpIsStillHeard) {
    Hub hub;
    int other = 0;
    std::size_t bytes = 0;
    hub.expect("other", other);
    const auto early = hub.connect("wanted");
    early->send(std::vector<std::byte>(3));
    early->close();
    hub.settle();
    std::shared_ptr<PeerSocket> socket;
    hub.hub->expect("wanted", [&](Result<Descriptor> connection, std::uint32_t) {
        socket = std::make_shared<PeerSocket>(hub.context.get_executor(), std::move(*connection));
        socket->start({.on_message = [&](std::span<const std::byte> message,
                                         const Descriptor&) { bytes = message.size(); },
                       .on_closed = [](std::string_view) {}});
    });
    hub.settle();
    EXPECT_EQ(bytes, 3u);
    hub.hub->forget("wanted");
    hub.hub->forget("other");
    hub.settle();
}

} // namespace
} // namespace safering::test
