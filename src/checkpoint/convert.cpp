// Rewrites a checkpoint into final files with bounded memory: the tensors are cut into windows, and each
// window is a rank of an ordinary save. While one window is written, the next is read. A source that is
// replaced in its own directory is read through descriptors that were opened before the first byte was
// written, and stays as it was until the commit: by then the data is durable in the new files, and the
// switch drops the old ones.
#include "checkpoint/convert.hpp"

#include <algorithm>
#include <array>
#include <future>

#include <fmt/format.h>

#include "checkpoint/convert_files.hpp"
#include "checkpoint/convert_window.hpp"
#include "checkpoint/finish_switch.hpp"
#include "checkpoint/manifest.hpp"
#include "checkpoint/perform.hpp"
#include "checkpoint/stored_checkpoint.hpp"
#include "checkpoint/windows.hpp"
#include "io/huge_memory.hpp"

namespace safering {

using namespace checkpoint;

namespace {

// A window of one of several ranks, at least: below, asking costs more than the bytes.
constexpr std::uint64_t least_shared_window = std::uint64_t{1} << 20;

// How large a window may be: two fit the memory, and every rank gets some.
Result<std::uint64_t> window_limit(const ConvertTarget& target, const ConvertOptions& options,
                                   std::uint32_t ranks) {
    const std::uint64_t limit =
        std::max<std::uint64_t>(options.memory_bytes / 2 / target.widest, 4096);
    if (ranks < 2)
        return limit;
    std::uint64_t total = 0;
    for (const auto& [fqn, tensor] : target.metadata.tensors) {
        auto bytes = byte_size(tensor.dtype, tensor.size);
        if (!bytes)
            return std::unexpected(std::move(bytes.error()));
        total += *bytes;
    }
    return std::min(limit, std::max(least_shared_window, total / ranks));
}

// __metadata__ that all files agree on, without what describes the shards.
std::vector<std::pair<std::string, std::string>>
common_metadata(const HuggingFaceStorageReader& reader) {
    std::map<std::string, std::optional<std::string>> values;
    for (const auto& [file, entries] : reader.file_metadata())
        for (const auto& [key, value] : entries) {
            const auto [found, inserted] = values.try_emplace(key, value);
            if (!inserted && found->second != value)
                found->second.reset();
        }
    std::vector<std::pair<std::string, std::string>> out;
    for (const auto& [key, value] : values)
        if (value && !key.starts_with("DCP_"))
            out.emplace_back(key, *value);
    return out;
}

std::vector<SavePlan> plan_windows(const std::vector<Window>& windows) {
    std::vector<SavePlan> plans;
    for (const Window& window : windows) {
        SavePlan plan{.rank = static_cast<std::uint32_t>(plans.size()), .items = {}, .storage = {}};
        for (const Slice& slice : window.slices)
            plan.items.push_back({.fqn = slice.fqn,
                                  .type = slice.box.sizes == slice.size ? WriteItemType::tensor
                                                                        : WriteItemType::shard,
                                  .dtype = slice.dtype,
                                  .chunk = slice.box,
                                  .size = slice.size});
        plans.push_back(std::move(plan));
    }
    return plans;
}

} // namespace

namespace checkpoint {

Conversion::Conversion(std::string source, std::string destination, Reactor& reactor,
                       ConvertOptions options)
    : source_(std::move(source)), destination_(std::move(destination)),
      from_(make_target_path(source_)), to_(make_target_path(destination_)),
      options_(std::move(options)), reactor_(std::shared_ptr<void>(), &reactor),
      reader_(source_, {.verification = Verification::all}, reactor_) {}

Result<void> Conversion::open() {
    // A directory is replaced whole, by what has been read of all of it. A file is one of the files there.
    const std::string named_in = make_target_path(source_, LastLink::keep).parent;
    if (in_place() || from_.parent == to_.path || named_in == to_.path) {
        const auto status = perform(*reactor_, {.op = Opcode::stat, .path = from_.path});
        if (status && status->status.kind != FileKind::directory)
            return std::unexpected(Error{
                .code = Errc::checkpoint_conflict,
                .operation = "convert",
                .file = from_.path,
                .detail = "the destination is the directory that this file stands in, where the "
                          "commit would replace all of the checkpoint by this one file; choose "
                          "another destination"});
    }
    auto metadata = reader_.read_metadata();
    if (!metadata)
        return std::unexpected(std::move(metadata.error()));
    metadata_ = std::move(*metadata);
    auto target = choose_target(metadata_, options_);
    if (!target)
        return std::unexpected(std::move(target.error()));
    target_ = std::move(*target);
    if (sharding_info_for(*reactor_, from_.path) == ShardingInfo::apply)
        return {};
    // Offsets of zeros do not tell the first of several shards from a whole.
    for (const auto& [file, entries] : reader_.file_metadata())
        for (const auto& [key, value] : entries)
            if (key == "DCP_SHARDING_INFO")
                target_.notes.push_back(fmt::format(
                    "{} is a shard, which may hold parts of tensors; convert its directory to have "
                    "them whole",
                    escaped(file)));
    return {};
}

HuggingFaceStorageWriter Conversion::make_writer(FqnToIndexMapping mapping) {
    return HuggingFaceStorageWriter(
        destination_,
        {.fqn_to_index_mapping = std::move(mapping), .metadata = common_metadata(reader_)},
        reactor_);
}

Result<std::vector<std::vector<SavePlan>>> Conversion::prepare(std::uint32_t ranks) {
    auto mapping = choose_files(target_.metadata, options_);
    if (!mapping)
        return std::unexpected(std::move(mapping.error()));
    auto limit = window_limit(target_, options_, ranks);
    if (!limit)
        return std::unexpected(std::move(limit.error()));
    auto windows = make_windows(target_.metadata, *mapping, *limit);
    if (!windows)
        return std::unexpected(std::move(windows.error()));
    writer_ = make_writer(std::move(*mapping));
    auto plans = writer_->prepare_global_plan(plan_windows(*windows));
    if (!plans)
        return std::unexpected(std::move(plans.error()));
    std::vector<std::uint64_t> sizes;
    for (const Window& window : *windows)
        sizes.push_back(window.bytes);
    // Runs of windows, so that few ranks share a file.
    const std::vector<std::uint32_t> rank_of = equal_parts(sizes, ranks);
    std::vector<std::vector<SavePlan>> parts(ranks);
    for (std::size_t w = 0; w < plans->size(); ++w)
        parts[rank_of[w] - 1].push_back(std::move((*plans)[w]));
    return parts;
}

Result<std::vector<WriteResults>> Conversion::write(std::span<const SavePlan> part) {
    if (!writer_)
        writer_ = make_writer({});
    if (part.empty())
        return std::vector<WriteResults>();
    std::uint64_t largest = 0;
    std::uint64_t total = 0;
    std::vector<std::uint64_t> sizes;
    for (const SavePlan& window : part) {
        const auto bytes = window_bytes(window, target_);
        if (!bytes)
            return std::unexpected(bytes.error());
        sizes.push_back(*bytes);
        largest = std::max(largest, *bytes);
        total += *bytes;
    }
    std::array<std::shared_ptr<std::byte>, 2> memory;
    for (auto& half : memory) {
        auto allocated = io::allocate_huge(largest);
        if (!allocated)
            return std::unexpected(std::move(allocated.error()));
        half = std::move(*allocated);
    }
    std::vector<WriteResults> results;
    std::future<WriteResults> writing;
    const auto collect = [&]() -> Result<void> {
        if (!writing.valid())
            return {};
        try {
            results.push_back(writing.get());
        } catch (const Exception& exception) {
            return std::unexpected(exception.error());
        }
        return {};
    };
    const auto read_window = [&](std::vector<LocalDestination> destinations) -> Result<void> {
        DefaultLoadPlanner planner(std::move(destinations));
        auto plan = planner.create_local_plan(metadata_);
        if (!plan)
            return std::unexpected(std::move(plan.error()));
        auto read = reader_.read_data(*plan, planner);
        if (!read)
            return std::unexpected(std::move(read.error()));
        return {};
    };
    std::uint64_t done = 0;
    for (std::size_t w = 0; w < part.size(); ++w) {
        Result<void> read;
        auto placed = ConvertWindow::make(part[w], target_, memory[w % 2]);
        if (!placed)
            read = std::unexpected(std::move(placed.error()));
        else if (options_.stop.stop_requested())
            read = fail(std::make_error_code(std::errc::operation_canceled), "convert");
        else
            read = read_window(placed->take_destinations());
        // The window before the last read this memory; it must be out before the next is read into it.
        auto collected = collect();
        if (!read)
            return std::unexpected(std::move(read.error()));
        if (!collected)
            return std::unexpected(std::move(collected.error()));
        if (const auto overflow = placed->convert(); overflow.values != 0) {
            if (overflow_.values == 0)
                overflow_.fqn = overflow.fqn;
            overflow_.values += overflow.values;
        }
        DefaultSavePlanner planner(placed->take_tensors());
        writing = writer_->write_data(part[w], planner);
        done += sizes[w];
        if (options_.progress)
            options_.progress(done, total);
    }
    if (auto collected = collect(); !collected)
        return std::unexpected(std::move(collected.error()));
    return results;
}

// Otherwise the commit would replace a newer save by this older one.
Result<void> Conversion::check_source_unchanged() {
    // One that has been committed and not switched in is there, too.
    if (auto finished = finish_switch(*reactor_, from_); !finished)
        return std::unexpected(std::move(finished.error()));
    const std::string path = join(from_.path, std::string(manifest_name));
    std::string found;
    auto text = read_small_file(*reactor_, path, OpenMode::read, record_limit_bytes);
    if (!text && !is_absent(text.error()))
        return std::unexpected(std::move(text.error()));
    if (text) {
        auto manifest = parse_manifest(*text, path);
        if (!manifest)
            return std::unexpected(std::move(manifest.error()));
        found = std::move(manifest->attempt);
    }
    if (found == attempt())
        return {};
    return std::unexpected(
        Error{.code = Errc::checkpoint_conflict,
              .operation = "convert",
              .file = from_.path,
              .detail = "it was saved to meanwhile, and is left as it is now; convert it again"});
}

Result<SaveReport> Conversion::finish(std::vector<WriteResults> results) {
    if (!writer_)
        return fail(Errc::plan_not_prepared, "finish", "prepare was not called, or failed");
    if (in_place())
        if (auto unchanged = check_source_unchanged(); !unchanged)
            return std::unexpected(std::move(unchanged.error()));
    auto report = writer_->finish(target_.metadata, std::move(results));
    if (!report)
        return report;
    std::ranges::copy(target_.notes, std::back_inserter(report->notes));
    if (overflow_.values != 0)
        report->notes.push_back(fmt::format("{} finite values, first of \"{}\", are beyond {} and "
                                            "became infinite",
                                            overflow_.values, escaped(overflow_.fqn),
                                            name(*options_.dtype)));
    return report;
}

} // namespace checkpoint

Result<SaveReport> convert_checkpoint(const std::string& source, const std::string& destination,
                                      Reactor& reactor, const ConvertOptions& options) {
    Conversion conversion(source, destination, reactor, options);
    if (auto opened = conversion.open(); !opened)
        return std::unexpected(std::move(opened.error()));
    auto parts = conversion.prepare(1);
    if (!parts)
        return std::unexpected(std::move(parts.error()));
    auto results = conversion.write(parts->front());
    if (!results)
        return std::unexpected(std::move(results.error()));
    return conversion.finish(std::move(*results));
}

} // namespace safering
