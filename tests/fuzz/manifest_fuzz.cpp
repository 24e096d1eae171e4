// Any text as a manifest, as it is and under a good seal: refused, or a value that comes back when it is written.
#include "checkpoint/attempt.hpp"
#include "checkpoint/manifest.hpp"
#include "checkpoint/strict_json.hpp"

using namespace safering;
using namespace safering::checkpoint;

namespace {

void check(std::string_view text) {
    const Result<Manifest> manifest = parse_manifest(text, "f");
    if (!manifest) {
        SAFERING_ASSERT(manifest.error().file == "f");
        return;
    }
    SAFERING_ASSERT(is_attempt_id(manifest->attempt));
    for (const ManifestFile& file : manifest->files)
        SAFERING_ASSERT(is_safe_file_name(file.name));
    const Result<Manifest> again = parse_manifest(to_text(*manifest), "f");
    SAFERING_ASSERT(again && *again == *manifest);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    check(text);
    check(seal_json(std::string(text)));
    return 0;
}
