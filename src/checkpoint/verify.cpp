#include <safering/checkpoint.hpp>

#include <algorithm>
#include <set>

#include <fmt/format.h>

#include "checkpoint/attempt.hpp"
#include "checkpoint/read_job.hpp"
#include "checkpoint/stored_checkpoint.hpp"

namespace safering {

using namespace checkpoint;

namespace {

// Where nothing at all could be looked at, there is nothing to report on.
bool is_fatal(const Error& error) {
    return error.code == Errc::checkpoint_not_found ||
           error.code.category() == std::system_category();
}

std::vector<std::string> unchecked(Reactor& reactor, const StoredCheckpoint& checkpoint) {
    std::vector<std::string> out;
    if (checkpoint.source != CheckpointSource::manifest)
        out.push_back(
            fmt::format("there is no {}, so changed tensor bytes cannot be told from saved ones",
                        manifest_name));
    else if (!checkpoint.digests)
        out.push_back("it was saved without digests, so changed tensor bytes cannot be told");
    if (checkpoint.source == CheckpointSource::directory)
        out.push_back(
            fmt::format("there is no {} either, so a missing file may go unnoticed", index_name));
    if (checkpoint.source == CheckpointSource::single_file)
        return out;
    std::set<std::string_view> own;
    for (const StoredFile& file : checkpoint.files)
        own.insert(file.name);
    const auto listed = perform(reactor, {.op = Opcode::list, .path = checkpoint.path});
    if (!listed)
        return out;
    for (const DirectoryEntry& entry : listed->entries)
        if (is_safe_file_name(entry.name) && !own.contains(entry.name))
            out.push_back(fmt::format("{} is not part of this checkpoint", escaped(entry.name)));
    return out;
}

} // namespace

Result<VerifyReport> verify_checkpoint(const std::string& path, Reactor& reactor,
                                       const VerifyOptions& options) {
    VerifyReport report;
    auto opened = open_checkpoint(reactor, path, options.strict, &report.findings);
    if (!opened) {
        if (is_fatal(opened.error()) && report.findings.empty())
            return std::unexpected(std::move(opened.error()));
        report.findings.push_back(std::move(opened.error()));
        return report;
    }
    report.source = opened->source;
    report.files = opened->files.size();
    report.unchecked = unchecked(reactor, *opened);
    std::uint64_t total = 0;
    for (const StoredFile& file : opened->files)
        total += file.file_bytes() - file.header.data_begin;
    std::uint64_t before = 0;
    // A file at a time, so that one that cannot be read does not keep the others from being looked at.
    for (std::size_t f = 0; f < opened->files.size(); ++f) {
        const auto progress = [&](std::uint64_t done, std::uint64_t) {
            if (options.progress)
                options.progress(before + done, total);
        };
        auto job = ReadJob::make_scan(reactor, *opened, f,
                                      {.progress = progress, .on_mismatch = [&](Error error) {
                                           report.findings.push_back(std::move(error));
                                       }});
        auto scanned = job ? (*job)->run() : std::unexpected(std::move(job.error()));
        if (scanned) {
            report.read_bytes += scanned->read_bytes;
            report.verified_bytes += scanned->verified_bytes;
            report.work += scanned->work;
        } else
            report.findings.push_back(std::move(scanned.error()));
        before += opened->files[f].file_bytes() - opened->files[f].header.data_begin;
    }
    return report;
}

} // namespace safering
