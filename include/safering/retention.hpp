// The checkpoints of a training run, side by side in one directory: which there are, which is the newest,
// which may go, and what saves that were cut off have left.
//
// A checkpoint of a run is a directory with a name `<prefix>-<digits>` or `<prefix>_<digits>` ("step-1000",
// "checkpoint_0500") that holds a manifest of safering. Only those are counted and removed: nothing with another
// name, nothing without a manifest that reads well, no symbolic link (files in it may be some). Each prefix is a series
// of its own.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <safering/reactor.hpp>

namespace safering {

enum class CheckpointState : std::uint8_t {
    whole,     ///< the manifest reads well, and every file that it lists is there in its full size
    switching, ///< whole, but the last save's files are still being moved in; opening it finishes that
    damaged, ///< a manifest of ours, and a file that is missing or has another size
    foreign, ///< the name fits, but no manifest of ours says what it is; never counted, never removed
    unreadable, ///< the system refused to say, now: it may be whole; not counted, never removed
};
SAFERING_API std::string_view name(CheckpointState state);

struct StepCheckpoint {
    /// "step-1000", "step", 1000.
    std::string name{};
    std::string prefix{};
    std::uint64_t step = 0;
    std::string path{};
    CheckpointState state = CheckpointState::foreign;
    /// The save that wrote it, and when it began: milliseconds since 1970. Empty and 0 without a manifest.
    std::string attempt{};
    std::uint64_t saved_ms = 0;
    /// Of the manifest: data files, and their bytes together.
    std::uint64_t files = 0;
    std::uint64_t bytes = 0;
    /// Why it is not whole.
    std::string reason{};
    /// What the system said of one that is unreadable.
    std::error_code error{};
    /// Names in it that its save did not write: config.json, a tokenizer.
    std::vector<std::string> others{};
};

/// A directory of ours that is no checkpoint.
struct Leftover {
    enum class Kind : std::uint8_t {
        attempt,   ///< of a save that has not been committed
        switching, ///< of one that has, whose files are still being moved in from there
        removal,   ///< a checkpoint whose removal was cut off; the next prune goes on with it
    };
    Kind kind = Kind::attempt;
    std::string name{};
    std::string path{};
    /// Name of the checkpoint that was saved or removed.
    std::string target{};
    /// When the save began, of a removal that which is removed.
    std::uint64_t begun_ms = 0;
    /// An attempt that a later save of the same target has overtaken. The others may still be written to.
    bool stale = false;
};

struct CheckpointList {
    /// Absolute, links resolved.
    std::string directory{};
    /// By prefix, then by step, rising.
    std::vector<StepCheckpoint> checkpoints{};
    std::vector<Leftover> leftovers{};
    /// What the file `latest` says; nothing where there is none or it does not read as a name.
    std::optional<std::string> pointer{};
};

/// Reads names, manifests and sizes, and changes nothing. Errors: what the system says of the directory; a
/// checkpoint that cannot be read is in the list, with the reason. Blocks, as all here; not from the reactor's
/// thread.
SAFERING_API Result<CheckpointList> list_checkpoints(const std::string& directory,
                                                     Reactor& reactor);

/// The newest whole checkpoint, of one prefix if one is given; nothing where there is none. Errors: as
/// list_checkpoints; what the system says of an unreadable one that may be newer. That is the one of the
/// highest step, unless the file `latest` names a whole one: then that, or the highest step that was saved
/// after it. (So a run that was set back to an earlier step, and says so by set_latest(), goes on from there; and
/// a crash between a commit and set_latest() loses no step.) What the file says is never believed unchecked.
SAFERING_API Result<std::optional<StepCheckpoint>>
latest(const std::string& directory, Reactor& reactor, const std::string& prefix = {});
/// The same from a list that was read already, passing over those that are unreadable.
SAFERING_API const StepCheckpoint* latest(const CheckpointList& list,
                                          const std::string& prefix = {});

/// Writes the file `latest` beside a checkpoint: its name and a line end, durable on return, replaced by one rename.
/// After the save has been committed. Errors: checkpoint_incomplete where the checkpoint is not whole, what the system
/// says where it is unreadable;
/// checkpoint_conflict where `latest` is there and no such file (a link, a directory, something longer).
SAFERING_API Result<void> set_latest(const std::string& checkpoint, Reactor& reactor);

struct RetentionPolicy {
    /// The newest so many whole checkpoints of each prefix stay. 0 counts as 1.
    std::uint64_t keep_last = 1;
    /// Steps that this divides stay; 0: none for that reason.
    std::uint64_t keep_every = 0;
    /// Only this series; empty: each.
    std::string prefix{};
    /// What to do with a checkpoint that holds more than its save wrote (config.json, a tokenizer).
    enum class Others : std::uint8_t {
        keep,   ///< it stays, with a note
        remove, ///< it goes with everything in it; links are removed, not followed
    };
    Others others = Others::keep;
};

struct PruneReport {
    struct Kept {
        StepCheckpoint checkpoint{};
        /// "newest", "one of the last 3", "every 1000", ...
        std::string reason{};
    };
    /// What went, or would go in a dry run.
    std::vector<StepCheckpoint> removed{};
    std::vector<Kept> kept{};
    /// Removals of earlier calls that were gone on with.
    std::vector<Leftover> finished{};
    /// What could not be removed, and why.
    std::vector<Error> failures{};
};

enum class DryRun : bool { no, yes };

/// Removes checkpoints that the policy does not keep. Whatever it says, these stay: the newest whole one of each prefix,
/// the one that latest() gives, those that are damaged and newer than every whole one of their prefix, those that are
/// unreadable, and those that are being saved again or switched in.
/// A checkpoint goes at once and for good, by a durable rename to a hidden name, or stays as it was; its files
/// are unlinked after that, and a crash leaves them to the next call. Errors: as list_checkpoints; a single
/// checkpoint's are failures of the report.
SAFERING_API Result<PruneReport> prune(const std::string& directory, Reactor& reactor,
                                       const RetentionPolicy& policy, DryRun dry_run = DryRun::no);

enum class StaleAttempts : std::uint8_t {
    overtaken, ///< those that began before the save which the target holds now
    all, ///< also those that may still be written to; only where no save to this target is running
};

struct RecoverReport {
    /// The target holds a save that was committed and cut off while its files were moved in; now it is there.
    bool switch_finished = false;
    std::vector<Leftover> removed{};
    /// Attempts that may still be written to.
    std::vector<Leftover> left{};
    std::vector<Error> failures{};
};

/// Finishes what a save to `target` (a directory, or one that is not there yet) has begun and not ended, and removes
/// attempts and removals beside it. Errors: what keeps the switch from being finished.
SAFERING_API Result<RecoverReport>
recover_checkpoint(const std::string& target, Reactor& reactor,
                   StaleAttempts attempts = StaleAttempts::overtaken);

} // namespace safering
