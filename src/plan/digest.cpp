// XXH3-64 of bytes in file order: the digest that the manifest keeps of every extent.
#include "plan/box.hpp"

#include <array>
#include <cstring>

#define XXH_STATIC_LINKING_ONLY // for the layout of XXH3_state_t: one allocation, or none
#include <xxhash.h>

// libxxhash's own choice of the widest vectors at run time; absent from some builds of it and off
// x86, hence weak. The states are the same, so falling back changes the speed only.
extern "C" [[gnu::weak]] XXH_errorcode XXH3_64bits_update_dispatch(XXH3_state_t* state,
                                                                   const void* input, size_t bytes);
extern "C" [[gnu::weak]] XXH64_hash_t XXH3_64bits_dispatch(const void* input, size_t bytes);

namespace safering::plan {

namespace {

void update_state(XXH3_state_t& state, const std::byte* data, std::size_t bytes) {
    const XXH_errorcode code = XXH3_64bits_update_dispatch != nullptr
                                   ? XXH3_64bits_update_dispatch(&state, data, bytes)
                                   : XXH3_64bits_update(&state, data, bytes);
    SAFERING_ASSERT(code == XXH_OK);
}

// Runs shorter than this are collected first: an update costs about as much as
// hashing so many bytes.
constexpr std::uint64_t collect_below_bytes = 128;

void update_from(XXH3_state_t& state, const FileBox& box, const std::byte* image,
                 ByteRange window) {
    if (box.run_bytes() >= collect_below_bytes) {
        box.for_each_run(window, [&](ByteRange run) {
            update_state(state, image + (run.begin - window.begin), run.size());
        });
        return;
    }
    std::array<std::byte, 4096> collected{};
    std::size_t filled = 0;
    box.for_each_run(window, [&](ByteRange run) {
        if (filled + run.size() > collected.size()) {
            update_state(state, collected.data(), filled);
            filled = 0;
        }
        std::memcpy(collected.data() + filled, image + (run.begin - window.begin), run.size());
        filled += run.size();
    });
    update_state(state, collected.data(), filled);
}

} // namespace

struct Digest::State {
    XXH3_state_t xxh3;
};

Digest::Digest() : state_(std::make_unique<State>()) {
    reset();
}
Digest::~Digest() = default;
Digest::Digest(Digest&&) noexcept = default;
Digest& Digest::operator=(Digest&&) noexcept = default;

void Digest::reset() {
    XXH3_INITSTATE(&state_->xxh3);
    SAFERING_ASSERT(XXH3_64bits_reset(&state_->xxh3) == XXH_OK);
}

void Digest::update(const std::byte* data, std::size_t bytes) {
    update_state(state_->xxh3, data, bytes);
}

std::uint64_t Digest::value() const {
    return XXH3_64bits_digest(&state_->xxh3);
}

void Digest::update(const FileBox& box, const std::byte* image, ByteRange window) {
    update_from(state_->xxh3, box, image, window);
}

std::uint64_t digest_of(std::span<const std::byte> bytes) {
    return XXH3_64bits_dispatch != nullptr ? XXH3_64bits_dispatch(bytes.data(), bytes.size())
                                           : XXH3_64bits(bytes.data(), bytes.size());
}

std::uint64_t digest_of_image(const FileBox& box, const std::byte* image, ByteRange window) {
    XXH3_state_t state;
    XXH3_INITSTATE(&state);
    SAFERING_ASSERT(XXH3_64bits_reset(&state) == XXH_OK);
    update_from(state, box, image, window);
    return XXH3_64bits_digest(&state);
}

} // namespace safering::plan
