// Any text as a redo record, as it is and under a good seal: refused, or one that names only files of a checkpoint.
#include "checkpoint/commit.hpp"
#include "checkpoint/strict_json.hpp"

using namespace safering;
using namespace safering::checkpoint;

namespace {

void check(std::string_view text) {
    const Result<RedoRecord> record = parse_redo_record(text, "f");
    if (!record) {
        SAFERING_ASSERT(record.error().file == "f");
        return;
    }
    SAFERING_ASSERT(is_plain_component(record->directory));
    for (const auto* names : {&record->move, &record->remove})
        for (const std::string& name : *names)
            SAFERING_ASSERT(is_plain_component(name));
    const Result<RedoRecord> again = parse_redo_record(to_text(*record), "f");
    SAFERING_ASSERT(again && *again == *record);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    check(text);
    check(seal_json(std::string(text)));
    return 0;
}
