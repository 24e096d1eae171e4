// A conversion step by step, so that several processes can share the work, as DCP's calls share a save:
//   every rank    open()
//   coordinator   parts = prepare(ranks)
//   every rank    results = write(own part)
//   coordinator   finish(all results)
// How parts and results travel between ranks is the caller's business. convert_checkpoint() is one rank.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <safering/checkpoint.hpp>

#include "checkpoint/attempt.hpp"
#include "checkpoint/convert_target.hpp"
#include "checkpoint/convert_window.hpp"

namespace safering::checkpoint {

class Conversion {
  public:
    /// Nothing is touched yet. `reactor` must outlive this.
    Conversion(std::string source, std::string destination, Reactor& reactor,
               ConvertOptions options);

    /// Opens the source; its files stay open, so that what is read is what was looked at here. Blocks.
    Result<void> open();
    /// The save that wrote the source, after open(); empty without a manifest. All ranks must see the same.
    const std::string& attempt() const { return reader_.attempt(); }

    /// Coordinator. Lays out the files and makes the attempt. Gives each rank its part, a run of windows;
    /// about equal in bytes, and empty for some where there are fewer windows than ranks. Blocks.
    Result<std::vector<std::vector<SavePlan>>> prepare(std::uint32_t ranks);

    /// Reads a part verified and writes it, a window being written while the next is read. What it has begun
    /// has ended when it returns. Blocks.
    Result<std::vector<WriteResults>> write(std::span<const SavePlan> part);

    /// Coordinator. The metadata commit, with the results of all parts in any order. Blocks.
    Result<SaveReport> finish(std::vector<WriteResults> results);

    /// Removes what prepare() made, as the destructor does; to be called when no rank writes any more. Blocks.
    Result<void> abort() { return writer_ ? writer_->abort() : Result<void>(); }

  private:
    bool in_place() const { return from_.path == to_.path; }
    Result<void> check_source_unchanged();
    HuggingFaceStorageWriter make_writer(FqnToIndexMapping mapping);

    std::string source_;
    std::string destination_;
    TargetPath from_;
    TargetPath to_;
    ConvertOptions options_;
    std::shared_ptr<Reactor> reactor_; // borrowed
    HuggingFaceStorageReader reader_;
    Metadata metadata_; // of the source
    ConvertTarget target_;
    ConvertWindow::Overflow overflow_; // of what write() wrote here
    std::optional<HuggingFaceStorageWriter> writer_;
};

} // namespace safering::checkpoint
