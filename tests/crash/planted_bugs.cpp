#include "planted_bugs.hpp"

#include <algorithm>

#include "checkpoint/attempt.hpp"
#include "log_editor.hpp"
#include "scenarios.hpp"

namespace safering::test {

namespace {

using Which = LogEditor::Which;

constexpr auto fsync = Opcode::fsync;
constexpr auto sync = Opcode::sync_directory;
constexpr auto move = Opcode::rename; // of a directory or a file
constexpr auto unlink = Opcode::unlink;
constexpr const char* data = "model-00001-of-00001.safetensors";
constexpr const char* manifest = "safering.manifest.json";
constexpr const char* index_file = "model.safetensors.index.json";
constexpr const char* redo = ".safering.redo"; // the directory, and where it is moved to
constexpr const char* record = "record.json";
constexpr auto make_directory = Opcode::make_directory;
constexpr const char* attempt = ".tmp";
constexpr const char* parent = "/ckpt";
constexpr const char* target = "/ckpt/step";
// As Enumeration::broken says.
constexpr const char* neither = "neither old nor new";
constexpr const char* lost = "reported, but lost";
constexpr const char* wrong_files = "wrong files";

LogEditor first() {
    return LogEditor(first_save("first save", {1, 0}, {}));
}
LogEditor second() {
    return LogEditor(replace("replace", two_files(tiny_model(0)), {1, 0}, {}));
}
LogEditor second_in_same_file() {
    return LogEditor(replace("replace", {}, {1, 0}, {}));
}

// A save whose paths somebody rewrites on their way to the disk.
Scenario rewritten(const std::shared_ptr<SimulatedDisk>& disk, const std::optional<Expected>& old,
                   std::vector<std::string> files, SimulatedDisk::Interceptor interceptor) {
    disk->intercept(std::move(interceptor));
    const auto saved = save_in_order(tiny_model(2), {1, 0}, target, {}, *disk, crash_reactor(disk));
    if (!saved)
        throw Exception(saved.error());
    return recorded("rewritten save", *disk,
                    {.old = old, .fresh = {tiny_model(2), std::move(files)}, .save_again = {}});
}

const std::vector<std::string> files_of_one{data, index_file, manifest};

Scenario overwritten_in_place() {
    auto disk = disk_with(tiny_model(1), {1, 0}, {});
    const Expected old = expected_on(*disk, tiny_model(1));
    return rewritten(disk, old, files_of_one, [](Operation& operation) {
        Request& request = operation.request;
        std::optional<Completion> ended;
        if (!request.path.ends_with(data) || !request.path.contains(attempt))
            return ended;
        if (request.op == move)
            ended = Completion{};
        if (request.op == Opcode::open)
            request.mode = OpenMode::update;
        request.path = std::string(target) + "/" + data;
        return ended;
    });
}

// Every attempt has the same name, and what is there already is taken for its own.
Scenario reused_name() {
    auto disk = empty_disk();
    const std::string reused = "/ckpt/.step." + std::string(32, '0') + ".tmp";
    disk->write_text(reused + "/" + data, std::string(9000, 'x'));
    return rewritten(disk, {}, files_of_one, [reused](Operation& operation) {
        Request& request = operation.request;
        const std::size_t at = request.path.find("/.step.");
        std::optional<Completion> ended;
        if (at == std::string::npos)
            return ended;
        const std::size_t end = request.path.find(attempt, at) + std::string_view(attempt).size();
        request.path = reused + request.path.substr(end);
        if (request.op == Opcode::make_directory)
            ended = Completion{};
        if (request.op == Opcode::open && request.path.ends_with(data))
            request.mode = OpenMode::update;
        return ended;
    });
}

// A file that holds an empty tensor only is written by its head alone.
Scenario head_not_synced() {
    auto disk = empty_disk();
    const Model model{make_tensor("a", Dtype::u8, {0}, 1), make_tensor("b", Dtype::u8, {40}, 2)};
    const auto saved =
        save_in_order(model, {1, 0}, target, two_files(model), *disk, crash_reactor(disk));
    if (!saved)
        throw Exception(saved.error());
    return LogEditor(recorded("first save", *disk,
                              {.old = {}, .fresh = expected_on(*disk, model), .save_again = {}}))
        .drop({fsync, "model-00001-of-00002.safetensors"})
        .done();
}

// The old directory is emptied and removed, and the new one takes its name.
Scenario removed_first() {
    LogEditor log = second_in_same_file();
    SimulatedTree::Place place;
    if (log.base().find(target, true, place) != 0)
        throw std::logic_error("there is no old checkpoint");
    const SimulatedDisk::Record publish = log.at({move, redo});
    const std::string from = publish.path.substr(0, publish.path.find(redo) - 1);
    const std::string switch_directory =
        log.at({make_directory, redo}).path + "/" + from.substr(from.size() - 36, 32);
    log.drop_all({Opcode::open, record}).drop_all({Opcode::write, record});
    log.drop_all({fsync, record}).drop({sync, switch_directory}).drop({sync, redo});
    log.drop({make_directory, switch_directory}).drop({make_directory, redo});
    log.truncate_from({move, redo});
    for (const auto& [name, inode] : log.base().inode(place.inode)->entries)
        log.append({.op = unlink, .inode = inode, .directory = place.inode, .name = name});
    log.append({.op = Opcode::remove_directory,
                .inode = place.inode,
                .directory = place.directory,
                .name = place.name});
    log.append({.op = move,
                .inode = publish.directory,
                .directory = place.directory,
                .new_directory = place.directory,
                .name = from.substr(from.rfind('/') + 1),
                .new_name = place.name});
    log.append({.op = sync, .inode = place.directory});
    return log.done();
}

Scenario record_not_in_its_directory() {
    LogEditor log = second();
    const std::string opened = log.at({Opcode::open, record}).path;
    return log.drop({sync, opened.substr(0, opened.rfind('/'))}).done();
}

Scenario retried_fsync() {
    LogEditor log = first();
    SimulatedDisk::Record failed = log.at({fsync, data, 1});
    failed.failed = true;
    return log.insert_before({fsync, data, 1}, failed).done();
}

Scenario ignored_fsync_error() {
    LogEditor log = first();
    log.at({fsync, data, 1}).failed = true;
    return log.done();
}

Scenario short_write() {
    LogEditor log = first();
    SimulatedDisk::Record& write = log.at({Opcode::write, data, 1});
    write.length /= 2;
    write.data.resize(write.length);
    return log.done();
}

// The buffer is given to the next write while the kernel still reads it for this one.
Scenario freed_buffer() {
    LogEditor log(first_save("first save", {1, 0}, two_files(tiny_model(0))));
    SimulatedDisk::Record& late = log.at({Opcode::write, "model-00001-of-00002.safetensors", 1});
    const SimulatedDisk::Record& next =
        log.at({Opcode::write, "model-00002-of-00002.safetensors", 1});
    std::copy_n(next.data.begin(), std::min(next.data.size(), late.data.size()), late.data.begin());
    return log.done();
}

// The coordinator takes a rank's word for a file that was never written.
Scenario uncovered() {
    constexpr const char* file = "model-00002-of-00002.safetensors";
    return LogEditor(first_save("first save", {2, 0}, two_files(tiny_model(0))))
        .drop({Opcode::write, file, 1})
        .done();
}

std::vector<PlantedBug> missing_syncs() {
    return {
        {"data is not fsynced", "log: the rank's fsync dropped", neither,
         [] { return first().drop({fsync, data, 1}).done(); }},
        {"a head is not fsynced where a file has no data", "log: the coordinator's fsync dropped",
         neither, head_not_synced},
        {"the manifest is not fsynced", "log: fsync dropped", neither,
         [] { return first().drop({fsync, manifest}).done(); }},
        {"the index is not fsynced", "log: fsync dropped", neither,
         [] { return first().drop({fsync, index_file}).done(); }},
        {"the redo record is not fsynced", "log: fsync dropped", neither,
         [] { return second().drop({fsync, record}).done(); }},
        {"the attempt is not synced before its rename", "log: directory sync dropped", wrong_files,
         [] { return first().drop({sync, attempt}).done(); }},
        {"the attempt is not synced before the switch", "log: directory sync dropped", neither,
         [] { return second().drop({sync, attempt}).done(); }},
        {"the attempt's own name is not synced before the switch",
         "log: the parent's first sync dropped", neither,
         [] { return second().drop({sync, parent}).done(); }},
        {"the parent is not synced after the rename", "log: directory sync dropped", lost,
         [] { return first().drop({sync, parent}).done(); }},
        {"the redo record is not synced into its directory", "log: directory sync dropped",
         wrong_files, record_not_in_its_directory},
        {"the redo record's name is not synced", "log: both directory syncs dropped", wrong_files,
         [] { return second().drop({sync, attempt, 1}).drop({sync, target}).done(); }},
        {"the moves are not synced before the clean-up", "log: both directory syncs dropped",
         neither, [] { return second().drop({sync, attempt, 2}).drop({sync, target, 1}).done(); }},
        {"the removal of stale files is not synced", "log: directory sync dropped", wrong_files,
         [] { return second().drop({sync, target, 2}).done(); }},
    };
}

std::vector<PlantedBug> wrong_orders() {
    return {
        {"early rename", "log: the attempt renamed before the manifest's fsync", wrong_files,
         [] { return first().move_before({move, target}, {fsync, manifest}).done(); }},
        {"early switch", "log: the redo record renamed before the manifest's fsync", neither,
         [] { return second().move_before({move, redo}, {fsync, manifest}).done(); }},
        {"early success", "log: reported before the parent's last sync", lost,
         [] { return first().move_behind_report({sync, parent}).done(); }},
        {"no redo record", "log: its rename dropped", wrong_files,
         [] { return second().drop({move, redo}).done(); }},
        {"redo record after the switch", "log: the files moved before its rename", wrong_files,
         [] {
             return second()
                 .move_before({move, data}, {move, redo})
                 .move_before({move, manifest}, {move, redo})
                 .move_before({move, index_file}, {move, redo})
                 .done();
         }},
        {"redo record removed early", "log: unlinked before the moves are synced", wrong_files,
         [] { return second().move_before({unlink, record}, {sync, attempt, 2}).done(); }},
        {"early clean-up of the replaced files", "log: unlinked before the redo record's rename",
         neither,
         [] {
             return second()
                 .move_before({unlink, "model-00001-of-00002.safetensors"}, {move, redo})
                 .move_before({unlink, "model-00002-of-00002.safetensors"}, {move, redo})
                 .done();
         }},
        {"early clean-up of the attempt", "log: removed before the moves are synced", neither,
         [] {
             return second()
                 .move_before({Opcode::remove_directory, attempt}, {sync, attempt, 2})
                 .done();
         }},
        {"the old checkpoint removed first", "log: emptied, removed, the attempt renamed", neither,
         removed_first},
        {"the old files overwritten in place", "disk: the attempt's file opened in the target",
         neither, overwritten_in_place},
    };
}

std::vector<PlantedBug> ignored_failures() {
    return {
        {"a failed fsync is retried", "log: a failed one before the good one", neither,
         retried_fsync},
        {"a failed fsync is ignored", "log: it failed", neither, ignored_fsync_error},
        {"a failed write is ignored", "log: the write dropped", neither,
         [] { return first().drop({Opcode::write, data, 1}).done(); }},
        {"a short write is ignored", "log: half of its bytes", neither, short_write},
        {"a buffer is reused before its completion", "log: the next write's bytes in this one",
         neither, freed_buffer},
        {"coverage is not checked", "log: a rank's write dropped, its results accepted", neither,
         uncovered},
        {"the name of an attempt is reused", "disk: one name for all attempts, O_EXCL ignored",
         neither, reused_name},
    };
}

} // namespace

std::vector<PlantedBug> planted_bugs() {
    std::vector<PlantedBug> bugs = missing_syncs();
    for (auto part : {wrong_orders(), ignored_failures()})
        std::ranges::move(part, std::back_inserter(bugs));
    return bugs;
}

} // namespace safering::test
