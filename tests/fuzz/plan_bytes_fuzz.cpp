// Any bytes as a plan, results or metadata, in a good envelope: refused, or a value that comes back when it is
// written. The first byte says which kind.
#include <safering/plan.hpp>

#include "checkpoint/rank_messages.hpp"
#include "input.hpp"
#include "plan/byte_codec.hpp"

using namespace safering;

namespace {

std::vector<std::byte> enveloped(plan::ByteKind kind, std::string_view payload) {
    plan::ByteWriter writer(kind);
    for (const char byte : payload)
        writer.byte(static_cast<std::uint8_t>(byte));
    return std::move(writer).finish();
}

template <typename Parse>
void check(const std::vector<std::byte>& bytes, Parse parse) {
    const auto value = parse(bytes);
    if (!value) {
        SAFERING_ASSERT(value.error().code == Errc::plan_bad_bytes);
        return;
    }
    const auto again = parse(to_bytes(*value));
    SAFERING_ASSERT(again && *again == *value);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using plan::ByteKind;
    test::Input input(data, size);
    const auto kind = static_cast<ByteKind>(1 + input.below(6));
    const auto bytes = enveloped(kind, input.rest());
    switch (kind) {
    case ByteKind::save_plan: check(bytes, save_plan_from_bytes); break;
    case ByteKind::write_results: check(bytes, write_results_from_bytes); break;
    case ByteKind::load_plan: check(bytes, load_plan_from_bytes); break;
    case ByteKind::metadata: check(bytes, metadata_from_bytes); break;
    case ByteKind::storage_plan:
        check(bytes,
              [](std::span<const std::byte> some) { return storage_plan_from_bytes(some, 2); });
        break;
    case ByteKind::rank_message: // whatever they say, an Error or a value
        (void)checkpoint::unpack(bytes);
        (void)checkpoint::save_report_from_bytes(bytes);
        break;
    }
    return 0;
}
