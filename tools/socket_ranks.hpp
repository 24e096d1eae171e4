// Ranks that are processes of one host and talk through sockets: the Collectives of the trainer.
#pragma once

#include <cerrno>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <safering/async_saver.hpp>

namespace trainer {

using namespace safering;
using Bytes = std::vector<std::byte>;

inline Error system_error(std::string operation) {
    const bool late = errno == EAGAIN;
    return {.code = late ? std::make_error_code(std::errc::timed_out)
                         : std::error_code(errno, std::system_category()),
            .operation = std::move(operation)};
}

inline std::string named(const char* what, std::uint32_t rank) {
    return std::string(what) + " rank " + std::to_string(rank);
}

inline Result<void> send_all(int socket, const void* data, std::size_t length, std::uint32_t to) {
    const char* next = static_cast<const char*>(data);
    while (length != 0) {
        const ssize_t sent = ::send(socket, next, length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return std::unexpected(system_error(named("send to", to)));
        next += sent;
        length -= static_cast<std::size_t>(sent);
    }
    return {};
}

inline Result<void> receive_all(int socket, void* data, std::size_t length, std::uint32_t from) {
    char* next = static_cast<char*>(data);
    while (length != 0) {
        const ssize_t received = ::recv(socket, next, length, 0);
        if (received < 0 && errno == EINTR)
            continue;
        if (received < 0)
            return std::unexpected(system_error(named("receive from", from)));
        if (received == 0)
            return fail(Errc::io_peer_lost, named("receive from", from), "it has ended");
        next += received;
        length -= static_cast<std::size_t>(received);
    }
    return {};
}

inline Result<void> send_message(int socket, const Bytes& message, std::uint32_t to) {
    const std::uint64_t length = message.size();
    if (auto sent = send_all(socket, &length, sizeof length, to); !sent)
        return sent;
    return send_all(socket, message.data(), message.size(), to);
}

inline Result<Bytes> receive_message(int socket, std::uint32_t from) {
    std::uint64_t length = 0;
    if (auto received = receive_all(socket, &length, sizeof length, from); !received)
        return std::unexpected(received.error());
    Bytes message(length);
    if (auto received = receive_all(socket, message.data(), length, from); !received)
        return std::unexpected(received.error());
    return message;
}

// A star around rank 0: sockets[r] leads from rank 0 to rank r, and from others sockets[0] leads to rank 0. Whoever
// waits for longer than the deadline gets timed_out.
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
        if (rank_ != 0) {
            if (auto sent = send_message(sockets_[0], own, 0); !sent)
                return std::unexpected(sent.error());
            return all;
        }
        // All that speak are heard, so that nobody's words meet a closed socket; then the first that does not.
        all.push_back(std::move(own));
        std::optional<Error> silent;
        for (std::uint32_t rank = 1; rank < ranks_; ++rank) {
            auto message = receive_message(sockets_[rank], rank);
            if (message)
                all.push_back(std::move(*message));
            else if (!silent)
                silent = std::move(message.error());
        }
        if (silent)
            return std::unexpected(std::move(*silent));
        return all;
    }

    Result<Bytes> scatter(std::vector<Bytes> parts) override {
        if (rank_ != 0)
            return receive_message(sockets_[0], 0);
        // All that can be reached are told, then the first that cannot.
        Result<void> all;
        for (std::uint32_t rank = 1; rank < ranks_; ++rank)
            if (auto sent = send_message(sockets_[rank], parts[rank], rank); !sent && all)
                all = std::move(sent);
        if (!all)
            return std::unexpected(std::move(all.error()));
        return std::move(parts[0]);
    }

  private:
    std::uint32_t rank_;
    std::uint32_t ranks_;
    std::vector<int> sockets_;
};

// How long rank 0 waits for another rank, and another one for rank 0, which waits for all; 0: for ever.
struct Deadlines {
    std::chrono::seconds first{};
    std::chrono::seconds others{};
};

inline void set_deadline(int socket, std::chrono::seconds deadline) {
    const timeval longest{.tv_sec = deadline.count(), .tv_usec = 0};
    for (const int option : {SO_RCVTIMEO, SO_SNDTIMEO})
        if (::setsockopt(socket, SOL_SOCKET, option, &longest, sizeof longest) != 0)
            throw Exception(system_error("set the deadline of ranks"));
}

// Both ends of every socket of one star; made before the ranks are.
class Wires {
  public:
    explicit Wires(std::uint32_t ranks, Deadlines deadlines = {})
        : centre_(ranks, -1), rim_(ranks, -1) {
        for (std::uint32_t rank = 1; rank < ranks; ++rank) {
            int ends[2];
            if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
                throw Exception(system_error("make sockets between ranks"));
            set_deadline(ends[0], deadlines.first);
            set_deadline(ends[1], deadlines.others);
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
