// State of a HuggingFaceStorageWriter.
#pragma once

#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include <safering/storage_writer.hpp>

#include "checkpoint/attempt.hpp"
#include "checkpoint/attempt_directory.hpp"
#include "checkpoint/job_counter.hpp"
#include "checkpoint/manifest_builder.hpp"
#include "checkpoint/shared_reactor.hpp"
#include "checkpoint/throttle.hpp"
#include "checkpoint/write_job.hpp"

namespace safering {

struct HuggingFaceStorageWriter::Impl {
    // Between prepare_global_plan and finish, on the coordinator.
    struct Attempt {
        std::string id;
        std::string directory;
        /// Names of the data files.
        std::vector<std::string> files;
        std::uint64_t tensor_bytes;
        checkpoint::ManifestBuilder manifest;
        /// Empty in a sharded layout.
        std::string index;
        checkpoint::HeadsUnderWay heads;
    };

    checkpoint::SharedReactor reactor;
    checkpoint::TargetPath target;
    std::string path;
    WriterOptions options;
    std::optional<Attempt> attempt;
    FileSystemInfo file_system;
    std::stop_source stop;
    std::shared_ptr<checkpoint::Throttle> throttle;
    checkpoint::JobCounter jobs;
    double prepare_seconds = 0;

    // Of the attempt that was written to last.
    std::mutex work_mutex;
    std::string work_attempt;
    WorkReport work;

    void begin_work(const std::string& attempt_id) {
        const std::lock_guard lock(work_mutex);
        if (std::exchange(work_attempt, attempt_id) != attempt_id)
            work = {};
    }
    void add_work(const WorkReport& done) {
        const std::lock_guard lock(work_mutex);
        work += done;
    }
    WorkReport work_done() {
        const std::lock_guard lock(work_mutex);
        return work;
    }

    ~Impl();

    void set_path(std::string given) {
        path = std::move(given);
        target = checkpoint::make_target_path(path);
    }

    checkpoint::TargetPath attempt_base() const;
    Result<void> check_parent(Reactor& running);
    Result<SavePlan> prepare_local_plan(SavePlan plan);
    Result<std::vector<SavePlan>> prepare_global_plan(std::vector<SavePlan> plans);
    Result<SaveReport> finish(std::vector<WriteResults> results);
    Result<SaveReport> commit(std::vector<WriteResults> results);
    Result<SaveReport> commit_alone(std::vector<WriteResults> results);
    Result<checkpoint::Manifest> build_manifest(const std::vector<WriteResults>& results);
    SaveReport report_of(Reactor& running) const;
    Result<std::shared_ptr<checkpoint::WriteJob>> make_job(const SavePlan& plan,
                                                           SavePlanner& planner);
    Result<void> abort();
};

} // namespace safering
