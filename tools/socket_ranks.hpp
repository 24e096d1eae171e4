// Ranks that are processes of one host and talk through sockets: the Collectives of the trainer.
#pragma once

#include <cerrno>
#include <memory>
#include <utility>
#include <vector>

#include <sys/socket.h>
#include <unistd.h>

#include <safering/async_saver.hpp>

namespace trainer {

using namespace safering;
using Bytes = std::vector<std::byte>;

inline Error system_error(const char* operation) {
    return {.code = {errno, std::system_category()}, .operation = operation};
}

inline Result<void> send_all(int socket, const void* data, std::size_t length) {
    const char* next = static_cast<const char*>(data);
    while (length != 0) {
        const ssize_t sent = ::send(socket, next, length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return std::unexpected(system_error("send to another rank"));
        next += sent;
        length -= static_cast<std::size_t>(sent);
    }
    return {};
}

inline Result<void> receive_all(int socket, void* data, std::size_t length) {
    char* next = static_cast<char*>(data);
    while (length != 0) {
        const ssize_t received = ::recv(socket, next, length, 0);
        if (received < 0 && errno == EINTR)
            continue;
        if (received < 0)
            return std::unexpected(system_error("receive from another rank"));
        if (received == 0)
            return fail(Errc::io_peer_lost, "receive from another rank", "it has ended");
        next += received;
        length -= static_cast<std::size_t>(received);
    }
    return {};
}

inline Result<void> send_message(int socket, const Bytes& message) {
    const std::uint64_t length = message.size();
    return send_all(socket, &length, sizeof length).and_then([&] {
        return send_all(socket, message.data(), message.size());
    });
}

inline Result<Bytes> receive_message(int socket) {
    std::uint64_t length = 0;
    if (auto received = receive_all(socket, &length, sizeof length); !received)
        return std::unexpected(received.error());
    Bytes message(length);
    if (auto received = receive_all(socket, message.data(), length); !received)
        return std::unexpected(received.error());
    return message;
}

// A star around rank 0: sockets[r] leads from rank 0 to rank r, and from others sockets[0] leads to rank 0.
class Star final : public Collectives {
  public:
    Star(std::uint32_t rank, std::uint32_t ranks, std::vector<int> sockets)
        : rank_(rank), ranks_(ranks), sockets_(std::move(sockets)) {}
    ~Star() override {
        for (const int socket : sockets_)
            if (socket >= 0)
                ::close(socket);
    }
    std::uint32_t rank() const override { return rank_; }
    std::uint32_t ranks() const override { return ranks_; }

    Result<std::vector<Bytes>> gather(Bytes own) override {
        std::vector<Bytes> all;
        if (rank_ != 0)
            return send_message(sockets_[0], own).transform([&] { return all; });
        all.push_back(std::move(own));
        for (std::uint32_t rank = 1; rank < ranks_; ++rank) {
            auto message = receive_message(sockets_[rank]);
            if (!message)
                return std::unexpected(message.error());
            all.push_back(std::move(*message));
        }
        return all;
    }

    Result<Bytes> scatter(std::vector<Bytes> parts) override {
        if (rank_ != 0)
            return receive_message(sockets_[0]);
        for (std::uint32_t rank = 1; rank < ranks_; ++rank)
            if (auto sent = send_message(sockets_[rank], parts[rank]); !sent)
                return std::unexpected(sent.error());
        return std::move(parts[0]);
    }

  private:
    std::uint32_t rank_;
    std::uint32_t ranks_;
    std::vector<int> sockets_;
};

// Both ends of every socket of one star; made before the ranks are.
class Wires {
  public:
    explicit Wires(std::uint32_t ranks) : centre_(ranks, -1), rim_(ranks, -1) {
        for (std::uint32_t rank = 1; rank < ranks; ++rank) {
            int ends[2];
            if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
                throw Exception(system_error("make sockets between ranks"));
            centre_[rank] = ends[0];
            rim_[rank] = ends[1];
        }
    }
    // In a rank's process: its own ends. The rest are closed, so that the end of a rank is seen by the others.
    std::shared_ptr<Collectives> take(std::uint32_t rank) {
        std::vector<int> own{-1};
        if (rank == 0)
            own.swap(centre_);
        else
            std::swap(own[0], rim_[rank]);
        const auto ranks = static_cast<std::uint32_t>(rim_.size());
        close();
        return std::make_shared<Star>(rank, ranks, std::move(own));
    }
    void close() {
        for (std::vector<int>* ends : {&centre_, &rim_})
            for (int& end : *ends)
                if (end >= 0)
                    ::close(std::exchange(end, -1));
    }

  private:
    std::vector<int> centre_;
    std::vector<int> rim_;
};

} // namespace trainer
