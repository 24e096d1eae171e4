// The metadata commit: makes a checkpoint whose data is durable appear, whole, at its target. Sans-I/O: the
// machine asks for requests and is told how they ended; drive() carries them to a Reactor.
//
//   A = ".<name>.<attempt>.tmp" beside the target; every data file in it is written and fsynced already.
//   1 create, write, fsync: A/manifest, A/index, and where the target exists A/redo/<attempt>/record
//   2 fsync directory A, and those of the record; fsync the parent (A's own name)
//   target absent                                target present
//   3 rename A -> target, never replacing        3 rename A/redo/ -> target/redo, never replacing
//   4 fsync the parent        <- COMMITTED ->    4 fsync A and the target directory
//                                                5 rename A/f -> target/f: data, then manifest, then index
//                                                6 fsync A and the target directory; look whether A has
//                                                  none of them left, and the manifest in the target is
//                                                  the new one
//                                                7 unlink what the replaced checkpoint alone had
//                                                8 fsync the target, unlink the record, remove redo/<attempt>
//                                                  and redo, fsync the target
//                                                9 remove A, fsync the parent
// A rename across directories counts as durable when both are: POSIX promises no more, whatever journals do.
// A crash before the commit point leaves the old checkpoint (or none) and a stale A. After it, our reader
// sees the redo record and takes each file from A while it is still there, from the target once it has moved;
// whoever may write finishes steps 5 to 9 first. Each of those may be repeated from the start, and nothing is
// unlinked before the new checkpoint is seen to be there (A may have been left behind by a move). Files that
// belong to no checkpoint are not touched.
//
// Any process may stop between two steps, and go on when others have finished its switch and committed newer ones
// (a rank that hung, a reader that helped). So each step that changes the target takes something that only this
// attempt has, and fails where that is gone: 3 moves it out of A; 5 and 7 name the target's files through
// redo/<attempt> ("target/redo/<attempt>/../../f"), and 8 removes by that name, which are gone when the switch is done,
// and before another one can begin. Who clears an attempt of another process away revokes it first: attempt_directory.hpp.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <safering/reactor.hpp>

#include "checkpoint/attempt.hpp"

namespace safering::checkpoint {

/// What a switch that has been committed still has to do. Stored in the target, see redo_path().
struct RedoRecord {
    std::string attempt;
    /// Name of A in the target's parent; not derived from the target's, which may have been renamed since.
    std::string directory;
    /// File names, in the order of moving.
    std::vector<std::string> move;
    std::vector<std::string> remove;

    friend bool operator==(const RedoRecord&, const RedoRecord&) = default;
};
/// Where the record is: below the attempt's directory before the commit, below the target after it.
std::string redo_path(const std::string& directory, const std::string& attempt);
std::string to_text(const RedoRecord& record);
/// Errors: checkpoint_bad_manifest, checkpoint_unsafe_name.
Result<RedoRecord> parse_redo_record(std::string_view text, const std::string& file);

/// A protocol that asks for I/O in batches; all of a batch ends before the next is asked for.
class StepMachine {
  public:
    virtual ~StepMachine() = default;
    /// The next batch; empty when it has ended, well or not.
    std::vector<Request> next();
    /// How the batch ended, in its order.
    void complete(std::span<const Completion> completions);
    /// The first failure.
    const std::optional<Error>& error() const { return error_; }
    /// Gives up what is still open, where there is no memory for a batch that would close it.
    virtual void close_files(const std::function<void(int)>&) {}

  protected:
    /// The requests of the current step, or nothing where there are no more; may skip empty steps.
    virtual std::vector<Request> step() = 0;
    /// After every step; error() says whether it failed.
    virtual void advance(std::span<const Completion> completions) = 0;
    /// Whether this failure of this step means that the work was done already.
    virtual bool tolerated(const Request& request, const Completion& completion) const = 0;
    /// What must still be released after a failure; asked for once.
    virtual std::vector<Request> release() { return {}; }

  private:
    std::vector<Request> batch_;
    std::optional<Error> error_;
    bool released_ = false;
};

/// Steps 5 and 6, or 7 and 8: from a durable redo record to a target that holds the new checkpoint and nothing
/// stale. run_switch() puts the two together. Idempotent.
class RedoSwitch final : public StepMachine {
  public:
    enum class Part { move_in, clean_up };

    RedoSwitch(TargetPath target, RedoRecord record, Part part);
    /// The record is gone: nobody can repeat this any more, nor needs to.
    bool record_removed() const { return phase_ > Phase::unlink_record; }

  protected:
    std::vector<Request> step() override;
    void advance(std::span<const Completion> completions) override;
    bool tolerated(const Request& request, const Completion& completion) const override;

  private:
    enum class Phase {
        move,
        sync_moved,
        unlink_stale,
        sync_unlinked,
        unlink_record,
        remove_switch,
        remove_redo,
        sync_target,
        done
    };

    TargetPath target_;
    RedoRecord record_;
    std::string attempt_directory_;
    std::size_t moved_ = 0;
    Phase phase_;
    Phase end_;
};

struct CommitInput {
    TargetPath target;
    std::string attempt;
    /// Names of the data files in A.
    std::vector<std::string> data_files;
    std::string manifest;
    /// Empty: none is written.
    std::string index;
    bool target_present = false;
    /// Names in the target that the new checkpoint replaces without having them itself.
    std::vector<std::string> stale;
    /// Manifest and index are in A and durable already (a commit that found the target taken goes on).
    bool records_written = false;
};

/// Steps 1 to 4. With the target present, RedoSwitch(redo_record()) follows.
class MetadataCommit final : public StepMachine {
  public:
    explicit MetadataCommit(CommitInput input);
    /// Whether the commit point is behind: the new checkpoint is what a reader finds, whatever follows.
    bool committed() const { return committed_; }
    /// The renaming was done, though it may not have been made durable: A must not be removed any more.
    bool published() const { return published_; }
    /// The target was absent when the commit was prepared and is there now: commit again with it present.
    bool target_appeared() const { return target_appeared_; }
    const RedoRecord& redo_record() const { return redo_; }
    void close_files(const std::function<void(int)>& close) override;

  protected:
    std::vector<Request> step() override;
    void advance(std::span<const Completion> completions) override;
    bool tolerated(const Request& request, const Completion& completion) const override;
    std::vector<Request> release() override;

  private:
    enum class Phase {
        make_redo,
        make_switch,
        open,
        write,
        sync,
        close,
        sync_attempt,
        publish,
        sync_publish,
        done
    };
    struct Record {
        std::string path;
        std::string text;
        int file = -1;
    };

    CommitInput input_;
    RedoRecord redo_;
    std::string attempt_directory_;
    std::vector<Record> records_;
    Phase phase_;
    bool committed_ = false;
    bool published_ = false;
    bool target_appeared_ = false;
};

/// Carries a machine's batches to the reactor until it ends. Blocks. Want of memory is an Error too: the machine knows
/// how far it came.
Result<void> drive(Reactor& reactor, StepMachine& machine);

} // namespace safering::checkpoint
