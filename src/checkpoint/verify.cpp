#include <safering/checkpoint.hpp>

#include <algorithm>

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

// What this process lacks says nothing about the checkpoint.
bool is_obstacle(const Error& error) {
    for (const std::errc lack :
         {std::errc::permission_denied, std::errc::operation_not_permitted,
          std::errc::not_enough_memory, std::errc::too_many_files_open,
          std::errc::too_many_files_open_in_system, std::errc::resource_unavailable_try_again,
          std::errc::operation_canceled})
        if (error.code == lack)
            return true;
    return false;
}

std::vector<std::string> unchecked(Reactor& reactor, const StoredCheckpoint& checkpoint) {
    std::vector<std::string> out;
    if (checkpoint.source == CheckpointSource::single_file) {
        out.push_back("a file alone is not held against a manifest, so changed tensor bytes cannot "
                      "be told from saved ones; verify the directory of a checkpoint");
        if (std::ranges::any_of(checkpoint.files, has_sharding_info))
            out.push_back("it has DCP_SHARDING_INFO, so what it holds may be parts of tensors");
        return out;
    }
    const auto listed = perform(reactor, {.op = Opcode::list, .path = checkpoint.path});
    const std::vector<DirectoryEntry> entries =
        listed ? listed->entries : std::vector<DirectoryEntry>();
    const auto without = [&](std::string_view name, std::string_view consequence) {
        const bool there = std::ranges::find(entries, name, &DirectoryEntry::name) != entries.end();
        out.push_back(fmt::format("{} {}, so {}", name, there ? "cannot be used" : "is not there",
                                  consequence));
    };
    if (checkpoint.source != CheckpointSource::manifest)
        without(manifest_name, "changed tensor bytes cannot be told from saved ones");
    else if (!checkpoint.digests)
        out.push_back("it was saved without digests, so changed tensor bytes cannot be told");
    if (checkpoint.source == CheckpointSource::directory)
        without(index_name, "a missing file may go unnoticed");
    for (const DirectoryEntry& entry : entries)
        if (is_safe_file_name(entry.name) && !checkpoint.listed.contains(entry.name))
            out.push_back(fmt::format("{} is not part of this checkpoint", escaped(entry.name)));
    return out;
}

} // namespace

Result<VerifyReport> verify_checkpoint(const std::string& path, Reactor& reactor,
                                       const VerifyOptions& options) {
    VerifyReport report;
    auto opened = open_checkpoint(reactor, path, options.strict, &report.findings,
                                  sharding_info_for(reactor, path));
    if (!opened) {
        if (is_fatal(opened.error()) && std::ranges::all_of(report.findings, is_obstacle))
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
    if (!report.findings.empty() && std::ranges::all_of(report.findings, is_obstacle))
        return std::unexpected(std::move(report.findings.front()));
    return report;
}

} // namespace safering
