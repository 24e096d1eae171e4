#include "checkpoint/stored_checkpoint.hpp"

#include <algorithm>
#include <deque>
#include <numeric>
#include <set>
#include <tuple>

#include <fmt/format.h>

#include <safering/planner.hpp>

#include "checkpoint/attempt.hpp"
#include "checkpoint/strict_json.hpp"

namespace safering::checkpoint {

namespace {

using nlohmann::json;

// fqn -> saved_offsets of one file; nothing where the file is not a shard.
using SavedOffsets = std::map<std::string, Shape, std::less<>>;

std::unexpected<Error> bad_sharding(const StoredFile& file, std::string_view fqn,
                                    std::string detail) {
    return std::unexpected(Error{.code = Errc::checkpoint_bad_sharding_info,
                                 .operation = "read DCP_SHARDING_INFO",
                                 .file = file.path,
                                 .tensor = std::string(fqn),
                                 .detail = std::move(detail)});
}

auto find_sharding_info(const StoredFile& file) {
    return std::ranges::find(file.header.metadata, "DCP_SHARDING_INFO",
                             &std::pair<std::string, std::string>::first);
}

Result<std::optional<SavedOffsets>> sharding_info(const StoredFile& file) {
    const auto entry = find_sharding_info(file);
    if (entry == file.header.metadata.end())
        return std::nullopt;
    // An object and a list of offsets for each tensor; and room for tensors that are not in this file.
    std::uint64_t values = 1024;
    for (const safetensors::TensorEntry& tensor : file.header.tensors)
        values += 2 * (2 + tensor.shape.size());
    auto root = parse_strict_json(entry->second, 4, Errc::checkpoint_bad_sharding_info,
                                  "read DCP_SHARDING_INFO", file.path, values);
    if (!root)
        return std::unexpected(std::move(root.error()));
    if (!root->is_object())
        return bad_sharding(file, {}, "expected an object");
    SavedOffsets out;
    for (const auto& [fqn, value] : root->items()) {
        const auto list = value.is_object() ? value.find("saved_offsets") : value.end();
        if (!value.is_object() || list == value.end() || !list->is_array())
            return bad_sharding(file, fqn, "expected {\"saved_offsets\": [...]}");
        Shape offsets;
        for (const json& offset : *list) {
            if (!offset.is_number_unsigned())
                return bad_sharding(file, fqn, "an offset is not an unsigned integer");
            offsets.push_back(offset.get<std::uint64_t>());
        }
        out.emplace(fqn, std::move(offsets));
    }
    return out;
}

class Collecting {
  public:
    Collecting(const std::vector<StoredFile>& files, const FileList& list,
               std::vector<Error>* findings, ShardingInfo sharding_info)
        : files_(files), list_(list), findings_(findings), sharding_info_(sharding_info),
          incomplete_(list.missing || files.size() < list.files.size()) {}

    Result<Metadata> run() {
        for (std::uint32_t f = 0; f < files_.size(); ++f) {
            out_.files.push_back(files_[f].path);
            if (auto listed = list_file(f); !listed)
                if (auto reported = report(findings_, std::move(listed.error())); !reported)
                    return std::unexpected(std::move(reported.error()));
        }
        const auto name_of = [&](const Chunk& chunk) -> std::string_view {
            return entry_of(chunk).name;
        };
        // A tensor's chunks in order of the files.
        if (!std::ranges::is_sorted(chunks_, {}, name_of))
            std::ranges::stable_sort(chunks_, {}, name_of);
        std::size_t names = 0;
        for (std::size_t c = 0; c < chunks_.size(); ++c)
            names += c == 0 || name_of(chunks_[c]) != name_of(chunks_[c - 1]) ? 1 : 0;
        out_.tensors.reserve(names);
        for (const Chunk& chunk : chunks_)
            if (auto added = add_chunk(chunk); !added)
                if (auto reported = report(findings_, std::move(added.error())); !reported)
                    return std::unexpected(std::move(reported.error()));
        const auto check = [&](Result<void> checked) {
            return checked ? checked : report(findings_, std::move(checked.error()));
        };
        for (auto& [fqn, tensor] : out_.tensors)
            if (auto checked = check(close_tensor(fqn, tensor)); !checked)
                return std::unexpected(std::move(checked.error()));
        if (auto checked = check(check_lists()); !checked)
            return std::unexpected(std::move(checked.error()));
        return std::move(out_);
    }

  private:
    // A tensor of a file, and the place that its sharding info gives it; null where the file has none.
    struct Chunk {
        std::uint32_t file;
        std::uint32_t tensor;
        const Shape* offsets;
    };
    const safetensors::TensorEntry& entry_of(const Chunk& chunk) const {
        return files_[chunk.file].header.tensors[chunk.tensor];
    }

    Result<void> list_file(std::uint32_t f) {
        const StoredFile& file = files_[f];
        auto read = sharding_info_ == ShardingInfo::apply
                        ? sharding_info(file)
                        : Result<std::optional<SavedOffsets>>(std::nullopt);
        if (!read)
            return std::unexpected(std::move(read.error()));
        const auto& info = infos_.emplace_back(std::move(*read));
        for (std::size_t t = 0; t < file.header.tensors.size(); ++t) {
            const safetensors::TensorEntry& tensor = file.header.tensors[t];
            // The index decides which of several files has a tensor; a stray one does not count.
            if (list_.source == CheckpointSource::index && !list_.weight_map.empty()) {
                const auto mapped = list_.weight_map.find(tensor.name);
                if (mapped == list_.weight_map.end() || mapped->second != file.name)
                    continue;
            }
            const Shape* offsets = nullptr;
            if (info) {
                const auto saved = info->find(tensor.name);
                if (saved == info->end())
                    return bad_sharding(file, tensor.name, "it has no entry for this tensor");
                if (saved->second.size() != tensor.shape.size())
                    return bad_sharding(file, tensor.name,
                                        fmt::format("{} offsets for {} dimensions",
                                                    saved->second.size(), tensor.shape.size()));
                offsets = &saved->second;
            }
            chunks_.push_back({f, static_cast<std::uint32_t>(t), offsets});
        }
        return {};
    }

    Result<void> add_chunk(const Chunk& chunk) {
        const StoredFile& file = files_[chunk.file];
        const safetensors::TensorEntry& entry = entry_of(chunk);
        Shape offsets = chunk.offsets != nullptr ? *chunk.offsets : Shape(entry.shape.size(), 0);
        for (std::size_t d = 0; d < offsets.size(); ++d) {
            std::uint64_t end = 0;
            if (__builtin_add_overflow(offsets[d], entry.shape[d], &end))
                return bad_sharding(file, entry.name, "offset and size overflow");
        }
        const bool inserted = out_.tensors.empty() || out_.tensors.rbegin()->first != entry.name;
        if (inserted)
            out_.tensors.emplace_hint(out_.tensors.end(), entry.name, TensorStorageMetadata{});
        TensorStorageMetadata& tensor = out_.tensors.rbegin()->second;
        if (inserted) {
            tensor.dtype = entry.dtype;
            tensor.size = Shape(entry.shape.size(), 0);
        }
        const auto conflict = [&](std::string detail) {
            return std::unexpected(Error{.code = Errc::checkpoint_conflict,
                                         .operation = "open checkpoint",
                                         .file = file.path,
                                         .tensor = entry.name.str(),
                                         .detail = std::move(detail)});
        };
        if (!inserted) {
            const std::string& other = files_[tensor.storage.front().file].name;
            if (chunk.offsets == nullptr)
                return conflict(fmt::format("it stands in {} too", other));
            if (tensor.dtype != entry.dtype || tensor.size.size() != entry.shape.size())
                return conflict(fmt::format("{} of rank {}, in {} it is {} of rank {}",
                                            name(entry.dtype), entry.shape.size(), other,
                                            name(tensor.dtype), tensor.size.size()));
        }
        for (std::size_t d = 0; d < offsets.size(); ++d)
            tensor.size[d] = std::max(tensor.size[d], offsets[d] + entry.shape[d]);
        tensor.chunks.push_back({std::move(offsets), entry.shape});
        tensor.storage.push_back(
            {chunk.file, file.tensor_range(chunk.tensor).begin, entry.data.size()});
        return {};
    }

    // Without a manifest the global size of a sharded tensor is known only by its chunks' bounds.
    Result<void> close_tensor(std::string_view fqn, TensorStorageMetadata& tensor) const {
        const auto fault = [&](Errc code, std::string detail) {
            return std::unexpected(Error{.code = code,
                                         .operation = "open checkpoint",
                                         .file = files_[tensor.storage.front().file].path,
                                         .tensor = std::string(fqn),
                                         .detail = std::move(detail)});
        };
        if (list_.manifest && list_.manifest->layout == FileLayout::sharded) {
            const auto& known = list_.manifest->tensors;
            const auto listed = known.find(fqn);
            if (listed == known.end() || listed->second.dtype != tensor.dtype ||
                listed->second.size.size() != tensor.size.size())
                return fault(Errc::checkpoint_conflict,
                             fmt::format("{} does not list it so", manifest_name));
            tensor.size = listed->second.size;
        }
        auto tiled = check_tiling(fqn, tensor.size, tensor.chunks);
        // Ranks that saved alone each have what is replicated; the manifest's files never do.
        if (!tiled && tiled.error().code == Errc::plan_overlap && !list_.manifest) {
            drop_replicas(tensor);
            tiled = check_tiling(fqn, tensor.size, tensor.chunks);
        }
        if (!tiled && tiled.error().code == Errc::plan_hole && incomplete_)
            return {}; // the file that is missed has been reported
        if (!tiled)
            return fault(tiled.error().code == Errc::plan_hole ? Errc::checkpoint_incomplete
                                                               : Errc::checkpoint_conflict,
                         tiled.error().detail);
        return {};
    }

    // Of equal chunks the one in the first file stays.
    static void drop_replicas(TensorStorageMetadata& tensor) {
        const auto place = [&](std::size_t i) {
            return std::tie(tensor.chunks[i].offsets, tensor.chunks[i].sizes);
        };
        std::vector<std::size_t> order(tensor.chunks.size());
        std::iota(order.begin(), order.end(), 0u);
        std::ranges::stable_sort(order,
                                 [&](std::size_t a, std::size_t b) { return place(a) < place(b); });
        const auto same = std::ranges::unique(
            order, [&](std::size_t a, std::size_t b) { return place(a) == place(b); });
        order.erase(same.begin(), same.end());
        std::ranges::sort(order);
        TensorStorageMetadata kept{tensor.dtype, tensor.size, {}, {}};
        for (const std::size_t i : order) {
            kept.chunks.push_back(std::move(tensor.chunks[i]));
            kept.storage.push_back(tensor.storage[i]);
        }
        tensor = std::move(kept);
    }

    // What a file that is missed would hold is not reported once more for each of its tensors.
    Result<void> check_lists() const {
        const auto missing = [&](std::string_view fqn, std::string detail) {
            return report(findings_, {.code = Errc::checkpoint_tensor_missing,
                                      .operation = "open checkpoint",
                                      .tensor = std::string(fqn),
                                      .detail = std::move(detail)});
        };
        std::set<std::string_view> here;
        for (const StoredFile& file : files_)
            here.insert(file.name);
        for (const auto& [fqn, file] : list_.weight_map)
            if (!out_.tensors.contains(fqn) && here.contains(file))
                if (auto reported =
                        missing(fqn, fmt::format("{} says that {} holds it, which does not",
                                                 index_name, escaped(file)));
                    !reported)
                    return reported;
        if (list_.manifest && !incomplete_)
            for (const auto& [fqn, tensor] : list_.manifest->tensors)
                if (!out_.tensors.contains(fqn))
                    if (auto reported = missing(
                            fqn, fmt::format("{} lists it, no file holds it", manifest_name));
                        !reported)
                        return reported;
        return {};
    }

    const std::vector<StoredFile>& files_;
    const FileList& list_;
    std::vector<Error>* findings_;
    std::deque<std::optional<SavedOffsets>> infos_; // of files in their order; chunks point into it
    std::vector<Chunk> chunks_;
    ShardingInfo sharding_info_;
    const bool incomplete_;
    Metadata out_;
};

} // namespace

bool has_sharding_info(const StoredFile& file) {
    return find_sharding_info(file) != file.header.metadata.end();
}

Result<Metadata> collect_metadata(const std::vector<StoredFile>& files, const FileList& list,
                                  std::vector<Error>* findings, ShardingInfo sharding_info) {
    return Collecting(files, list, findings, sharding_info).run();
}

} // namespace safering::checkpoint
