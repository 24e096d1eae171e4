// What becomes of the names and dtypes of a converted checkpoint. Pure.
#pragma once

#include <map>
#include <string>
#include <vector>

#include <safering/checkpoint.hpp>

namespace safering::checkpoint {

struct ConvertTarget {
    struct Source {
        std::string fqn;
        Dtype dtype;
    };
    /// Names, dtypes and shapes of the destination; no chunks.
    Metadata metadata;
    /// By the name in the destination, of tensors whose name or dtype is another in the source.
    std::map<std::string, Source, std::less<>> sources;
    /// How many bytes of the source one of the destination takes, at most; 1 where none takes more.
    std::uint64_t widest = 1;
    /// What stayed although a dtype was asked for.
    std::vector<std::string> notes;

    Source source_of(std::string_view fqn, Dtype dtype) const;
};

Result<ConvertTarget> choose_target(const Metadata& source, const ConvertOptions& options);

} // namespace safering::checkpoint
