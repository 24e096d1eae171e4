#include "checkpoint/stored_checkpoint.hpp"

#include <algorithm>
#include <cstdlib>
#include <map>

#include <fmt/format.h>

#include <safering/planner.hpp>

#include "checkpoint/attempt.hpp"
#include "checkpoint/strict_json.hpp"
#include "large_memory.hpp"
#include "plan/box.hpp"

namespace safering::checkpoint {

namespace {

// Heads are read in batches of so many files; bounds memory, and keeps any disk busy.
constexpr std::size_t heads_at_once = 64;
// Memory for the heads that are longer than the first read, at a time.
constexpr std::uint64_t long_heads_bytes = std::uint64_t{256} << 20;
// The first read of a head: the whole of it for some hundred tensors.
constexpr std::uint64_t first_read_bytes = std::uint64_t{64} << 10;

struct FreeMemory {
    void operator()(std::byte* memory) const { std::free(memory); }
};
using AlignedBytes = std::unique_ptr<std::byte, FreeMemory>;

AlignedBytes aligned_bytes(std::uint64_t bytes) {
    auto* memory = static_cast<std::byte*>(std::aligned_alloc(block_bytes, bytes));
    if (memory == nullptr)
        throw std::bad_alloc();
    advise_huge(memory, bytes);
    return AlignedBytes(memory);
}

// The head of one file as it comes in.
struct Head {
    StoredFile* file = nullptr;
    AlignedBytes bytes;
    std::uint64_t read = 0;

    std::string_view text() const {
        return {reinterpret_cast<const char*>(bytes.get()),
                std::min(read, file->file.status().size)};
    }
    // Whole blocks, past the end of the file too: the descriptor may be direct.
    Request request(std::uint64_t wanted) {
        read = round_up(wanted, block_bytes);
        bytes = aligned_bytes(read);
        return {.op = Opcode::read,
                .file = file->file.descriptor(),
                .data = bytes.get(),
                .length = read,
                // 0 would mean all of `length`; an empty file never gets here.
                .minimum = std::min(wanted, file->file_bytes()),
                .path = file->path};
    }
};

class Opening {
  public:
    Opening(Reactor& reactor, bool strict, std::vector<Error>* findings, ShardingInfo sharding_info)
        : reactor_(reactor), strict_(strict), findings_(findings), sharding_info_(sharding_info) {}

    Result<StoredCheckpoint> run(const std::string& path, const FileList* list) {
        out_.path = path;
        out_.source = list->source;
        for (const auto& file : list->files)
            out_.listed.insert(file.first);
        out_.notes = list->notes;
        if (list->manifest) {
            out_.attempt = list->manifest->attempt;
            out_.digests = list->manifest->digests;
            out_.chunk_bytes = list->manifest->chunk_bytes;
            for (const ManifestFile& file : list->manifest->files)
                expected_.emplace(file.name, &file);
        }
        for (std::size_t first = 0; first < list->files.size(); first += heads_at_once) {
            const auto some =
                std::span(list->files)
                    .subspan(first, std::min(heads_at_once, list->files.size() - first));
            if (auto opened = open_some(some); !opened)
                return std::unexpected(std::move(opened.error()));
        }
        auto metadata = collect_metadata(out_.files, *list, findings_, sharding_info_);
        if (!metadata)
            return std::unexpected(std::move(metadata.error()));
        out_.metadata = std::move(*metadata);
        return std::move(out_);
    }

  private:
    Result<void> open_some(std::span<const std::pair<std::string, std::string>> names) {
        std::vector<Request> opens;
        for (const auto& [name, path] : names)
            opens.push_back({.op = Opcode::open,
                             .mode = strict_ ? OpenMode::read_strict : OpenMode::read,
                             .caching = Caching::direct,
                             .path = path});
        // All that did open, before an error of one ends this; with room for them before.
        std::vector<OpenFile> descriptors(opens.size());
        const auto opened = reactor_.wait_all(opens);
        for (std::size_t i = 0; i < opened.size(); ++i)
            if (!opened[i].error)
                descriptors[i] = OpenFile(reactor_, opened[i]);
        std::vector<StoredFile> files;
        for (std::size_t i = 0; i < opened.size(); ++i) {
            if (opened[i].error) {
                if (auto reported = report(findings_, open_error(opens[i], opened[i])); !reported)
                    return reported;
                continue;
            }
            StoredFile file{.name = names[i].first,
                            .path = names[i].second,
                            .file = std::move(descriptors[i]),
                            .header = {},
                            .extents = {},
                            .hulls = {}};
            if (auto checked = check_status(file); !checked) {
                if (auto reported = report(findings_, std::move(checked.error())); !reported)
                    return reported;
                continue;
            }
            files.push_back(std::move(file));
        }
        return read_heads(std::move(files));
    }

    Error open_error(const Request& request, const Completion& completion) const {
        Error error = to_error(request, completion);
        if (strict_ && completion.error == std::errc::too_many_symbolic_link_levels)
            error.detail = "it is a symbolic link, which strict reading refuses";
        if (completion.error == std::errc::too_many_files_open)
            error.detail = too_many_files_hint;
        return error;
    }

    Result<void> check_status(const StoredFile& file) const {
        Error error{.code = {}, .operation = "open checkpoint", .file = file.path};
        if (file.file.status().kind != FileKind::regular) {
            error.code = Errc::checkpoint_not_a_file;
            return std::unexpected(std::move(error));
        }
        const auto expected = expected_.find(file.name);
        if (expected == expected_.end() || expected->second->file_bytes == file.file_bytes())
            return {};
        error.code = Errc::checkpoint_file_size;
        error.detail = fmt::format("{} says {} bytes, it has {}", manifest_name,
                                   expected->second->file_bytes, file.file_bytes());
        return std::unexpected(std::move(error));
    }

    // One batch for the first block of every file, then as few as memory allows for the long heads.
    Result<void> read_heads(std::vector<StoredFile> files) {
        std::vector<Head> heads;
        for (StoredFile& file : files)
            heads.push_back({.file = &file, .bytes = {}, .read = 0});
        std::vector<Head*> wanted;
        for (Head& head : heads)
            if (head.file->file_bytes() != 0)
                wanted.push_back(&head);
            else if (auto parsed = parse(head); !parsed)
                return parsed;
        if (auto read = read_some(wanted, std::vector(wanted.size(), first_read_bytes)); !read)
            return read;
        std::vector<Head*> longer;
        std::vector<std::uint64_t> bytes;
        std::uint64_t total = 0;
        for (Head* head : wanted) {
            auto length = safetensors::parse_header_length(head->text(), head->file->file_bytes(),
                                                           head->file->path);
            if (!length || 8 + *length <= first_read_bytes) {
                if (auto parsed = parse(*head); !parsed)
                    return parsed;
                continue;
            }
            if (!longer.empty() && total + *length > long_heads_bytes) {
                if (auto read = read_long(longer, bytes); !read)
                    return read;
                longer.clear(), bytes.clear(), total = 0;
            }
            longer.push_back(head);
            bytes.push_back(8 + *length);
            total += *length;
        }
        return read_long(longer, bytes);
    }

    Result<void> read_long(std::vector<Head*> heads, const std::vector<std::uint64_t>& bytes) {
        if (auto read = read_some(heads, bytes); !read)
            return read;
        for (Head* head : heads)
            if (auto parsed = parse(*head); !parsed)
                return parsed;
        return {};
    }

    // Heads that could not be read lose their bytes and leave `heads`.
    Result<void> read_some(std::vector<Head*>& heads, std::span<const std::uint64_t> bytes) {
        std::vector<Request> reads;
        for (std::size_t i = 0; i < heads.size(); ++i)
            reads.push_back(heads[i]->request(bytes[i]));
        const auto completions = reactor_.wait_all(reads);
        std::vector<Head*> whole;
        for (std::size_t i = 0; i < heads.size(); ++i) {
            if (!completions[i].error) {
                whole.push_back(heads[i]);
                continue;
            }
            heads[i]->bytes.reset();
            if (auto reported = report(findings_, to_error(reads[i], completions[i])); !reported)
                return reported;
        }
        heads = std::move(whole);
        return {};
    }

    // Takes the file over and lets go of the bytes.
    Result<void> parse(Head& head) {
        auto taken = take(head);
        head.bytes.reset();
        return taken ? taken : report(findings_, std::move(taken.error()));
    }

    Result<void> take(Head& head) {
        StoredFile& file = *head.file;
        auto header = safetensors::parse_head(head.text(), file.file_bytes(), file.path);
        if (!header)
            return std::unexpected(std::move(header.error()));
        file.header = std::move(*header);
        if (const auto expected = expected_.find(file.name); expected != expected_.end())
            if (auto checked = apply_manifest(*expected->second, head.text(), file); !checked)
                return checked;
        out_.files.push_back(std::move(file));
        return {};
    }

    Result<void> apply_manifest(const ManifestFile& expected, std::string_view head,
                                StoredFile& file) const {
        const auto mismatch = [&](Errc code, std::string detail) {
            return std::unexpected(Error{.code = code,
                                         .operation = "check header",
                                         .file = file.path,
                                         .detail = std::move(detail)});
        };
        if (expected.data_begin != file.header.data_begin ||
            expected.head_digest != digest_of(head.substr(0, file.header.data_begin)))
            return mismatch(Errc::checkpoint_digest_mismatch,
                            fmt::format("{} has the digest of another header", manifest_name));
        file.extents.reserve(file.header.tensors.size());
        file.hulls.reserve(file.header.tensors.size());
        std::size_t next = 0;
        for (std::size_t i = 0; i < file.header.tensors.size(); ++i) {
            const safetensors::TensorEntry& tensor = file.header.tensors[i];
            file.extents.add_tensor();
            if (tensor.data.empty())
                continue;
            if (next == expected.extents.tensors())
                return mismatch(Errc::checkpoint_bad_manifest,
                                "it lists fewer tensors than the header");
            for (std::size_t e = expected.extents.first(next); e < expected.extents.first(next + 1);
                 ++e)
                file.extents.add(expected.extents.at(e));
            ++next;
            if (auto checked = check_extents(file, i); !checked)
                return checked;
        }
        if (next != expected.extents.tensors())
            return mismatch(Errc::checkpoint_bad_manifest, "it lists more tensors than the header");
        if (!out_.digests)
            file.extents = {}, file.hulls = {};
        return {};
    }

    // Boxes inside their tensor that tile it, each with a digest for every cell that it touches.
    Result<void> check_extents(StoredFile& file, std::size_t index) const {
        const safetensors::TensorEntry& tensor = file.header.tensors[index];
        const auto bad = [&](std::string detail) {
            return std::unexpected(Error{.code = Errc::checkpoint_bad_manifest,
                                         .operation = "check extents",
                                         .file = file.path,
                                         .tensor = tensor.name.str(),
                                         .detail = std::move(detail)});
        };
        std::vector<ChunkStorageMetadata> boxes;
        for (std::size_t e = file.extents.first(index); e < file.extents.first(index + 1); ++e) {
            const FileExtents::Extent extent = file.extents.at(e);
            ByteRange hull = file.tensor_range(index);
            if (extent.box != nullptr) {
                auto box = plan::FileBox::make(tensor.dtype, tensor.shape, extent.box->offsets,
                                               extent.box->sizes);
                if (!box)
                    return bad(box.error().message());
                hull = box->hull().shifted(hull.begin);
                boxes.push_back(*extent.box);
            }
            file.hulls.push_back(hull);
            if (extent.digests.size() != (out_.digests ? cell_count(hull, out_.chunk_bytes) : 0))
                return bad("the number of digests is wrong");
        }
        // One extent that is the whole tensor, or boxes alone.
        if (file.extents.count(index) == 0 ||
            (boxes.size() != file.extents.count(index) && file.extents.count(index) != 1))
            return bad("extents do not cover the tensor once");
        if (!boxes.empty())
            if (auto tiled = check_tiling(tensor.name, tensor.shape, boxes); !tiled)
                return bad(tiled.error().message());
        return {};
    }

    Reactor& reactor_;
    bool strict_;
    std::vector<Error>* findings_;
    ShardingInfo sharding_info_;
    StoredCheckpoint out_;
    std::map<std::string_view, const ManifestFile*> expected_;
};

// Names from before a switch, and a manifest or files from after it: further looks tell that from damage.
bool may_be_a_switch(const Error& error) {
    return error.code == Errc::checkpoint_file_missing || error.code == Errc::checkpoint_conflict ||
           error.code == Errc::checkpoint_digest_mismatch || is_absent(error);
}

} // namespace

ShardingInfo sharding_info_for(Reactor& reactor, const std::string& path) {
    const Completion status = reactor.wait({.op = Opcode::stat, .path = path});
    const bool is_file = !status.error && status.status.kind != FileKind::directory;
    return is_file ? ShardingInfo::ignore : ShardingInfo::apply;
}

Result<StoredCheckpoint> open_checkpoint(Reactor& reactor, const std::string& path, bool strict,
                                         std::vector<Error>* findings, ShardingInfo sharding_info) {
    // A checkpoint that is replaced while it is opened is opened again: its files would be of two saves.
    constexpr int tries = 10;
    const std::size_t found_before = findings == nullptr ? 0 : findings->size();
    for (int i = 0; i < tries; ++i) {
        const bool last = i + 1 == tries;
        if (findings != nullptr)
            findings->resize(found_before);
        auto list = list_checkpoint(reactor, path, strict, findings);
        if (!list) {
            if (!last && may_be_a_switch(list.error()))
                continue;
            return std::unexpected(std::move(list.error()));
        }
        auto opened = Opening(reactor, strict, findings, sharding_info).run(path, &*list);
        // While a switch goes on, files move on between the look at their names and the opening.
        const bool moving =
            !list->redo_attempt.empty() &&
            ((!opened && may_be_a_switch(opened.error())) ||
             (findings != nullptr &&
              std::any_of(findings->begin() + static_cast<std::ptrdiff_t>(found_before),
                          findings->end(), may_be_a_switch)));
        if ((last || !moving) && is_current(reactor, path, *list))
            return opened;
    }
    return std::unexpected(Error{.code = Errc::checkpoint_conflict,
                                 .operation = "open checkpoint",
                                 .file = path,
                                 .detail = "it is being replaced again and again"});
}

} // namespace safering::checkpoint
